// Elements and announcements. Server text only ever enters the page as text nodes, from here.

const SVG = "http://www.w3.org/2000/svg";

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/**
 * A new element.
 * @param {string} tag
 * @param {Object<string, any>} attributes `text` becomes its text; `onclick` and the like become
 *   listeners; false and null are left out.
 * @param {...(Node|string)} children Strings become text nodes, never markup.
 */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children);
  return node;
}

/** An icon of the sprite in index.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("focusable", "false");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Tell screen readers, politely and without moving the focus. */
export function announce(text) {
  const region = byId("announcer");
  region.append(element("p", { text }));
  while (region.childElementCount > 12) region.firstElementChild.remove();
}

/** Whether the reader asked for less motion. */
export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** `1 chunk`, `3 chunks`. */
export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
