// The picker of the model that answers: registry aliases and versions.

import { request } from "./api.js";
import { byId, element } from "./dom.js";
import { remembered } from "./storage.js";

const choice = remembered("sessionStorage", "rag-fti.model");

/** Build the picker around the select in index.html. */
export function createPicker() {
  const select = byId("model");
  let models = [];

  async function refresh() {
    const body = await (await request("v1/models")).json();
    models = body.data;
    const wanted = select.disabled ? choice.get() : select.value;
    const aliases = distinct(models.filter(isAlias));
    const versions = models.filter((model) => !isAlias(model));
    select.replaceChildren(
      ...group("Follows an alias", aliases),
      ...group(aliases.length ? "Stays on a version" : "Models", versions),
    );
    if (!models.length) return;
    select.value = models.some((model) => model.id === wanted) ? wanted : preferred(models);
    if (!select.value) select.selectedIndex = 0; // what was wanted is listed under another id
    select.disabled = false;
  }

  select.addEventListener("change", () => choice.set(select.value));

  return {
    refresh,
    /** Id to send as `model`; undefined lets the server choose. */
    chosen: () => (select.disabled ? undefined : select.value),
    /** Whether something else answered than the list says, so that it is out of date. */
    isStale: (answered) => models.find(({ id }) => id === select.value)?.root !== answered,
  };
}

/** An alias stands for something else: the version that answers now. */
const isAlias = ({ id, root }) => Boolean(root) && root !== id;

/** `champion` and `handbook@champion` are one where both mean `handbook@3`. */
function distinct(aliases) {
  const seen = new Set();
  return aliases.filter((model) => {
    const text = label(model);
    return !seen.has(text) && seen.add(text);
  });
}

function label(model) {
  const { id, root } = model;
  return isAlias(model) ? `${id.split("@").pop()} → ${root.split("/").pop()}` : id;
}

function preferred(models) {
  const champion = models.find(({ id }) => id === "champion" || id.endsWith("@champion"));
  return (champion || models[0]).id;
}

function group(name, models) {
  if (!models.length) return [];
  const options = models.map((model) => element("option", { value: model.id, text: label(model) }));
  return [element("optgroup", { label: name }, ...options)];
}
