// Adding documents by button or by dropping files anywhere on the page.

import { request } from "./api.js";
import { byId, count, element } from "./dom.js";

/**
 * Build the dialog's behaviour around the elements in index.html.
 * @param {{onStored: () => void}} seams Called when a file has gone into the store.
 */
export function createUpload({ onStored }) {
  const dialog = byId("upload");
  const input = byId("files");
  const results = byId("results");
  const summary = byId("upload-summary");
  const veil = byId("veil");
  let queue = Promise.resolve();

  const open = () => {
    if (!dialog.open) dialog.showModal();
  };
  byId("upload-open").addEventListener("click", open);
  byId("upload-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  });
  byId("choose").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = "";
  });
  watchDrops(veil, (files) => {
    open();
    take(files);
  });

  function take(files) {
    for (const file of files) {
      const state = element("span", { class: "result-state", text: "Waiting…" });
      const row = element(
        "li",
        { class: "result" },
        element("span", { class: "result-name", text: file.name }),
        state,
      );
      results.append(row);
      // One after another: the server embeds them anyway, and each gets its own outcome.
      queue = queue.then(() => send(file, row, state));
    }
  }

  async function send(file, row, state) {
    state.textContent = "Reading…";
    const outcome = await upload(file).catch((error) => ({ failed: true, text: error.message }));
    row.classList.add(outcome.failed ? "failed" : "stored");
    state.textContent = outcome.text.replace(`${file.name}: `, "");
    if (!outcome.failed) onStored();
    summary.textContent = `${file.name}: ${outcome.text}`;
  }

  return { open };
}

/** Send one file and put its outcome into words. */
async function upload(file) {
  const form = new FormData();
  form.append("file", file, file.name);
  const body = await (await request("v1/documents", { body: form })).json();
  return describe(body);
}

/** @param {{documents: object, chunks: object, failures: Array<object>}} body */
export function describe({ documents, chunks, failures = [] }) {
  if (documents.failed) {
    return { failed: true, text: failures[0]?.reason || "It could not be read." };
  }
  const done = ["added", "updated", "unchanged"].find((name) => documents[name]);
  const word = { added: "Added", updated: "Updated", unchanged: "Already there, unchanged" }[done];
  if (!word) return { failed: true, text: "Nothing was found in this file." };
  const parts = [word];
  if (done !== "unchanged") parts.push(count(chunks.added + chunks.reused, "chunk"));
  return { failed: false, text: parts.join(" · ") };
}

function watchDrops(veil, dropped) {
  const carriesFiles = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  let depth = 0; // enter and leave also fire for every child
  const settle = (change) => {
    depth = Math.max(0, depth + change);
    veil.hidden = depth === 0;
  };
  addEventListener("dragenter", (event) => carriesFiles(event) && settle(1));
  addEventListener("dragleave", (event) => carriesFiles(event) && settle(-1));
  addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    settle(-depth);
    dropped([...event.dataTransfer.files]);
  });
}
