// How an answer looks: text with numbered chips, the sources beneath it, feedback.

import { request } from "./api.js";
import { count, element, icon } from "./dom.js";

let forms = 0;
const MARKER = /\[(\d{1,3})\]/g;

/** An answer without its citation markers, as it is sent back as history. */
export const withoutMarkers = (text) => text.replace(/\s*\[\d{1,3}\]/g, "").trim();

/**
 * Put an answer's text into an element. Text stays text: no markdown, no markup, no links.
 * @param {HTMLElement} into
 * @param {string} text
 * @param {Array<object>|null} citations null while the answer is still being written.
 * @param {(citation: object, from: HTMLElement) => void} open Called to show a source.
 */
export function renderText(into, text, citations, open) {
  const known = new Map((citations || []).map((citation) => [citation.marker, citation]));
  const paragraphs = text.split(/\n{2,}/).map((part) => {
    const paragraph = element("p", { dir: "auto" });
    let from = 0;
    for (const match of part.matchAll(MARKER)) {
      const number = Number(match[1]);
      const citation = known.get(number);
      if (citations && !citation) continue; // a number in brackets that is no citation
      const before = part.slice(from, match.index);
      paragraph.append(before.trimEnd(), before.trim() ? "\u00a0" : "");
      paragraph.append(citation ? chip(citation, open) : pending(number));
      from = match.index + match[0].length;
    }
    paragraph.append(part.slice(from));
    return paragraph;
  });
  into.replaceChildren(...paragraphs);
}

const pending = (number) => element("span", { class: "chip", text: number });

function chip(citation, open) {
  const button = element("button", {
    type: "button",
    class: "chip",
    text: citation.marker,
    "data-marker": citation.marker,
    "aria-label": `Source ${citation.marker}: ${label(citation)}`,
    title: label(citation),
  });
  button.addEventListener("click", () => open(citation, button));
  return button;
}

/** `Title › Heading`, or the source where there is neither. */
export const label = (citation) =>
  [citation.title, citation.heading]
    .filter(Boolean)
    .join(" › ")
    .replaceAll(" > ", " › ") || citation.source;

/** The list of sources under an answer. */
export function sources(citations, open) {
  const items = citations.map((citation) => {
    const button = element(
      "button",
      { type: "button", class: "source-open", "data-marker": citation.marker },
      element("span", { class: "hidden", text: `Source ${citation.marker}: ` }),
      label(citation),
    );
    button.addEventListener("click", () => open(citation, button));
    const page = citation.page ? ` · page ${citation.page}` : "";
    return element(
      "li",
      { class: "source" },
      element("span", { class: "source-number", "aria-hidden": "true", text: citation.marker }),
      element(
        "div",
        { class: "source-body" },
        element("p", { class: "source-title" }, button),
        element("blockquote", { class: "quote", dir: "auto", text: citation.text.trim() }),
        element("p", { class: "source-path", text: `${citation.source}${page}` }),
      ),
    );
  });
  return element(
    "section",
    { class: "sources", "aria-label": count(citations.length, "source") },
    element("ol", {}, ...items),
  );
}

/** What stands under a finished answer: copy, thumbs, which version answered. */
export function footer({ id, text, about }) {
  const status = element("p", { class: "feedback-status", role: "status" });
  forms += 1;
  const formId = `feedback-${forms}`;
  const form = element("form", { class: "feedback", id: formId, hidden: true });
  const up = toggle("up", "Good answer", () => rate(1));
  const down = toggle("down", "Bad answer", () => {
    const opened = form.hidden;
    form.hidden = !opened;
    down.setAttribute("aria-expanded", String(opened));
    if (opened) form.querySelector("textarea").focus();
  });
  down.setAttribute("aria-expanded", "false");
  down.setAttribute("aria-controls", formId);

  async function rate(rating, words = {}) {
    up.disabled = down.disabled = true;
    status.textContent = "Sending…";
    try {
      await request("v1/feedback", { json: { response_id: id, rating, ...words } });
    } catch (error) {
      status.textContent = `Not stored: ${error.message}`;
      return false;
    } finally {
      up.disabled = down.disabled = false;
    }
    up.setAttribute("aria-pressed", String(rating === 1));
    down.setAttribute("aria-pressed", String(rating === -1));
    status.textContent = "Thank you, your feedback is stored.";
    return true;
  }

  fillForm(form, async (words) => {
    if (!(await rate(-1, words))) return;
    form.hidden = true;
    down.setAttribute("aria-expanded", "false");
    down.focus();
  });
  const buttons = element("div", { class: "answer-tools" });
  if (id) buttons.append(up, down);
  if (navigator.clipboard) buttons.append(copier(text, status));
  return element(
    "footer",
    { class: "answer-foot" },
    element("div", { class: "answer-row" }, buttons, element("p", { class: "about", text: about })),
    form,
    status,
  );
}

function toggle(name, text, onclick) {
  return element(
    "button",
    { type: "button", class: `tool small ${name}`, title: text, "aria-pressed": "false", onclick },
    icon(name),
    element("span", { class: "hidden", text }),
  );
}

function copier(text, status) {
  const onclick = async () => {
    try {
      await navigator.clipboard.writeText(text);
      status.textContent = "Copied.";
    } catch {
      status.textContent = "The browser does not allow copying here.";
    }
  };
  return element(
    "button",
    { type: "button", class: "tool small", title: "Copy the answer", onclick },
    icon("copy"),
    element("span", { class: "hidden", text: "Copy the answer" }),
  );
}

function fillForm(form, submit) {
  const field = (name, text, rows) => {
    const id = `${form.id}-${name}`;
    return [
      element("label", { for: id, text }),
      element("textarea", { id, name, rows, maxlength: 10000 }),
    ];
  };
  form.append(
    ...field("correction", "What would the right answer have been? (optional)", 2),
    ...field("comment", "Anything else? (optional)", 1),
    element(
      "div",
      { class: "actions" },
      element("button", { type: "submit", class: "button strong", text: "Send feedback" }),
    ),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const words = {};
    for (const name of ["correction", "comment"]) {
      const value = form.elements[name].value.trim();
      if (value) words[name] = value;
    }
    submit(words);
  });
}
