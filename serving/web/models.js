// The picker of the model that answers: registry aliases and versions.

import { request } from "./api.js";
import { byId, element } from "./dom.js";

const CHOICE = "rag-fti.model";

/** Build the picker around the select in index.html. */
export function createPicker() {
  const select = byId("model");
  let models = [];

  async function refresh() {
    const body = await (await request("v1/models")).json();
    models = body.data;
    const wanted = select.disabled ? sessionStorage.getItem(CHOICE) : select.value;
    const aliases = models.filter((model) => kind(model) === "alias");
    const others = models.filter((model) => kind(model) !== "alias");
    select.replaceChildren(
      ...group("Follows an alias", aliases),
      ...group(aliases.length ? "Stays on a version" : "Models", others),
    );
    const known = models.some((model) => model.id === wanted);
    if (models.length) select.value = known ? wanted : preferred(models);
    select.disabled = models.length === 0;
  }

  select.addEventListener("change", () => sessionStorage.setItem(CHOICE, select.value));

  return {
    refresh,
    /** Id to send as `model`; undefined lets the server choose. */
    chosen: () => (select.disabled ? undefined : select.value),
    /** Whether a version that answered is missing from the list, so that it is out of date. */
    isStale: (answered) => !models.some((model) => [model.id, model.root].includes(answered)),
  };
}

/** `name@3` is a version, `name@champion` an alias, anything else a model of its own. */
function kind({ id }) {
  const tail = id.split("@")[1];
  if (!tail) return "model";
  return /^\d+$/.test(tail) ? "version" : "alias";
}

function preferred(models) {
  const champion = models.find(({ id }) => id === "champion" || id.endsWith("@champion"));
  return (champion || models[0]).id;
}

function group(name, models) {
  if (!models.length) return [];
  const options = models.map(({ id, root }) =>
    element("option", { value: id, text: root && root !== id ? `${aliasOf(id)} → ${short(root)}` : id }),
  );
  return [element("optgroup", { label: name }, ...options)];
}

const aliasOf = (id) => id.split("@").pop();

/** `name@3` out of `name@3`, the last part out of a path. */
const short = (root) => root.split("/").pop();
