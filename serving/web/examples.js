// What the empty page offers: example questions, or a way to add the first documents.

import { request } from "./api.js";
import { byId, element } from "./dom.js";

/**
 * Fill the empty page with what fits the store.
 * @param {{ask: (question: string) => void, addDocuments: () => void}} seams
 */
export async function showBeginning({ ask, addDocuments }) {
  byId("add-first").addEventListener("click", addDocuments);
  const state = await (await request("health/ready")).json();
  if (!state.snapshot) {
    byId("no-documents").hidden = false;
    return;
  }
  const examples = await (await request("web/examples.json")).json();
  const answerable = await Promise.all(examples.map(isAnswerable));
  byId("examples").replaceChildren(
    ...examples
      .filter((_, number) => answerable[number])
      .map(({ question }) =>
        element(
          "li",
          {},
          element("button", {
            type: "button",
            class: "example",
            text: question,
            onclick: () => ask(question),
          }),
        ),
      ),
  );
}

/** Whether a search finds the document an example is about, where it names one. */
async function isAnswerable({ question, source }) {
  if (!source) return true;
  const body = await (await request("v1/search", { json: { query: question, k: 5 } })).json();
  return body.hits.some((hit) => hit.source.endsWith(source));
}
