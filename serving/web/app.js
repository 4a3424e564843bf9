// The chat page. Modules meet only here.

import { ApiError } from "./api.js";
import { createConversation } from "./conversation.js";
import { announce, byId, element } from "./dom.js";
import { showBeginning } from "./examples.js";
import { createKeyDialog } from "./key.js";
import { createPicker } from "./models.js";
import { createPanel } from "./source.js";
import { remembered } from "./storage.js";
import { createUpload } from "./upload.js";

const touch = matchMedia("(pointer: coarse)");
const composer = byId("composer");
const question = byId("question");
const panel = createPanel();
const picker = createPicker();
createKeyDialog();
const upload = createUpload({ onStored: () => (byId("no-documents").hidden = true) });

const conversation = createConversation({
  model: picker.chosen,
  openSource: (citation, snapshot, from) => panel.open(citation, snapshot, from),
  onState(running) {
    byId("send").hidden = running;
    byId("stop").hidden = !running;
    if (!running && !touch.matches && document.activeElement === document.body) question.focus();
  },
  onAnswered(model) {
    if (model && picker.isStale(model)) refreshModels();
  },
});

/** Whether the list could be loaded. The page works without: the server then picks the model. */
async function refreshModels() {
  try {
    await picker.refresh();
    return true;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    byId("model").replaceChildren(element("option", { text: "Models not available" }));
    announce(`The list of models could not be loaded: ${error.message}`);
    return false;
  }
}

function submit(text) {
  const asked = text.trim();
  if (!asked) return;
  if (conversation.isRunning()) {
    announce("An answer is still being written. Escape stops it.");
    return;
  }
  question.value = "";
  fit();
  conversation.ask(asked);
  // On a phone the keyboard would cover the answer.
  if (touch.matches) question.blur();
  else question.focus({ preventScroll: true });
}

/** Grow the field with its text; the style sheet caps it. */
function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  submit(question.value);
});
question.addEventListener("input", fit);
question.addEventListener("keydown", (event) => {
  // While an input method composes, Enter belongs to it.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit(question.value);
});
byId("stop").addEventListener("click", () => {
  conversation.stop();
  question.focus();
});
byId("new").addEventListener("click", () => {
  conversation.clear();
  panel.close();
  question.focus();
  announce("New conversation.");
});

addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog:modal")) return;
  const inPanel = byId("panel").contains(document.activeElement);
  if (panel.isOpen() && (inPanel || !conversation.isRunning())) panel.close();
  else conversation.stop();
});

const theme = byId("theme");
const chosenTheme = remembered("localStorage", "rag-fti.theme"); // read by theme.js
const isDark = () => document.documentElement.dataset.theme === "dark";
theme.addEventListener("click", () => {
  const next = isDark() ? "light" : "dark";
  chosenTheme.set(next);
  document.documentElement.dataset.theme = next;
});
const showTheme = () => theme.setAttribute("aria-pressed", String(isDark()));
new MutationObserver(showTheme).observe(document.documentElement, { attributeFilter: ["data-theme"] });
showTheme();

if (!touch.matches) question.focus();
begin();

/** One after the other, so that a key is asked for once, also where none is given. */
async function begin() {
  if (!(await refreshModels())) return;
  await showBeginning({ ask: submit, addDocuments: upload.open }).catch((error) => {
    if (!(error instanceof ApiError)) throw error; // without examples the page works as well
  });
}
