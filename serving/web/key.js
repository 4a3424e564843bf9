// The dialog for the API key, shown when a request answers 401.

import { key, onUnauthorized } from "./api.js";
import { byId } from "./dom.js";

/** Build the dialog's behaviour around the elements in index.html. */
export function createKeyDialog() {
  const dialog = byId("key");
  const field = byId("key-value");
  const text = byId("key-text");
  const forget = byId("key-forget");
  const opener = byId("key-open");
  const asks = text.textContent;
  let answer = null;

  /** @param {boolean} refused Whether there was a key and the server did not take it. */
  function ask(refused) {
    text.textContent = refused
      ? "The server did not accept this key. Check it, or use another."
      : asks;
    field.value = "";
    forget.hidden = !key.get();
    if (!dialog.open) dialog.showModal();
    field.focus();
    return new Promise((resolve) => {
      answer = resolve;
    });
  }

  const settle = (given) => {
    answer?.(given);
    answer = null;
    opener.hidden = !key.get();
  };
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const given = field.value.replace(/[\s\p{C}]/gu, ""); // copying takes unseen characters along
    if (!/^[!-~]+$/.test(given)) {
      text.textContent = "This cannot be a key: it holds characters that no key has. Copy it again.";
      field.focus();
      return;
    }
    key.set(given);
    settle(true);
    dialog.close();
  });
  byId("key-cancel").addEventListener("click", () => dialog.close());
  forget.addEventListener("click", () => {
    key.set("");
    dialog.close();
  });
  dialog.addEventListener("close", () => {
    field.value = "";
    settle(false);
  });
  opener.addEventListener("click", () => ask(false));
  opener.hidden = !key.get();
  onUnauthorized(ask);
}
