// The side panel: a source document, scrolled to the cited words. A dialog on phones.

import { request } from "./api.js";
import { label } from "./answer.js";
import { byId, element, still } from "./dom.js";
import { locate } from "./offsets.js";

const narrow = matchMedia("(max-width: 60rem)");

/** Build the panel's behaviour around the elements in index.html. */
export function createPanel() {
  const panel = byId("panel");
  const title = byId("panel-title");
  const about = byId("panel-about");
  const notice = byId("panel-notice");
  const body = byId("panel-text");
  const find = byId("panel-find");
  const cache = new Map();
  let opener = null;
  let shown = null;

  function raise() {
    if (panel.open) return;
    if (narrow.matches) panel.showModal();
    else panel.show();
    document.body.classList.add("with-panel");
  }

  function close() {
    if (panel.open) panel.close();
  }

  panel.addEventListener("close", () => {
    if (panel.dataset.moving) return;
    document.body.classList.remove("with-panel");
    shown = null;
    point(null);
    if (opener?.isConnected) opener.focus();
    opener = null;
  });
  panel.addEventListener("click", (event) => {
    if (event.target === panel && narrow.matches) close(); // the backdrop
  });
  narrow.addEventListener("change", () => {
    if (!panel.open) return;
    panel.dataset.moving = "true";
    panel.close();
    raise();
    setTimeout(() => delete panel.dataset.moving); // the close event comes as a task
    toWords();
  });
  byId("panel-close").addEventListener("click", close);
  find.addEventListener("click", () => {
    toWords();
    body.focus({ preventScroll: true });
  });

  function toWords() {
    const mark = body.querySelector("mark");
    if (!mark) return;
    const room = Math.max(24, (body.clientHeight - mark.offsetHeight) / 3);
    const top = mark.getBoundingClientRect().top - body.getBoundingClientRect().top;
    body.scrollTo({ top: body.scrollTop + top - room, behavior: still() ? "auto" : "smooth" });
  }

  /**
   * Show the document of a citation.
   * @param {object} citation
   * @param {string} snapshot State of the store the answer was made from.
   * @param {HTMLElement} from Gets the focus back when the panel closes.
   */
  async function open(citation, snapshot, from) {
    opener = from;
    shown = citation;
    point(from.closest(".turn"), citation.marker);
    title.textContent = label(citation);
    about.textContent = [citation.source, citation.page && `page ${citation.page}`]
      .filter(Boolean)
      .join(" · ");
    byId("panel-quote").textContent = `Cited words: ${citation.text}`;
    notice.textContent = "Loading…";
    find.hidden = true;
    body.replaceChildren();
    raise();
    title.focus({ preventScroll: true });
    let found;
    try {
      found = await load(citation.document_id, snapshot);
    } catch (error) {
      if (shown !== citation) return;
      notice.textContent = `The document cannot be shown: ${error.message}`;
      body.replaceChildren(element("mark", { text: citation.text }));
      return;
    }
    if (shown !== citation) return;
    fill(found, citation);
  }

  /** The document as it was when the answer was made; as it is now where that state is gone. */
  async function load(documentId, snapshot) {
    const name = `${documentId}@${snapshot}`;
    if (!cache.has(name)) {
      const path = `v1/documents/${encodeURIComponent(documentId)}`;
      let response;
      try {
        response = await request(snapshot ? `${path}?at=${encodeURIComponent(snapshot)}` : path);
      } catch (error) {
        if (!snapshot || error.status !== 404) throw error;
        response = await request(path);
      }
      cache.set(name, await response.json());
    }
    return cache.get(name);
  }

  function fill(found, citation) {
    const place = locate(found.text, citation);
    if (!place) {
      notice.textContent =
        "This document has changed since the answer was written and no longer holds the cited words.";
      body.replaceChildren(...lines(found.text));
      body.scrollTop = 0;
      return;
    }
    notice.textContent = place.moved
      ? "This document has changed since the answer was written; the cited words were found again."
      : "";
    body.replaceChildren(
      ...lines(found.text.slice(0, place.start)),
      element("mark", { text: found.text.slice(place.start, place.end) }),
      ...lines(found.text.slice(place.end)),
    );
    find.hidden = false;
    toWords();
  }

  return { open, close, isOpen: () => panel.open };
}

/** Text with its markdown headings set apart; every character stays where it is. */
function lines(text) {
  return text
    .split(/^(#{1,6} .*)$/m)
    .map((part, number) => (number % 2 ? element("span", { class: "doc-heading", text: part }) : part));
}

/** Set the number and the list entry of the open source apart. */
function point(turn, marker) {
  for (const node of document.querySelectorAll("[aria-current='true']")) {
    node.removeAttribute("aria-current");
  }
  for (const node of turn?.querySelectorAll("[data-marker]") || []) {
    if (Number(node.dataset.marker) === marker) node.setAttribute("aria-current", "true");
  }
}
