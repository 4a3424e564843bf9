// The server counts Unicode characters (code points); JavaScript strings count UTF-16 units.

/**
 * Where the cited words stand in a document, as UTF-16 indices.
 *
 * A document may have changed since it was cited. Then the words are looked for, and the place
 * nearest to the cited one is taken.
 *
 * @param {string} text The document.
 * @param {{start: number, end: number, text: string}} citation Offsets in code points.
 * @returns {{start: number, end: number, moved: boolean}|null} null where the words are gone.
 */
export function locate(text, citation) {
  const start = toUnits(text, citation.start);
  const end = toUnits(text, citation.end, start, citation.start);
  const words = citation.text || "";
  if (end > start && (!words || text.slice(start, end) === words)) {
    return { start, end, moved: false };
  }
  let best = -1;
  for (let at = words ? text.indexOf(words) : -1; at >= 0; at = text.indexOf(words, at + 1)) {
    if (best < 0 || Math.abs(at - start) < Math.abs(best - start)) best = at;
  }
  return best < 0 ? null : { start: best, end: best + words.length, moved: true };
}

/** Index in UTF-16 units of the `points`-th code point, counting on from a known pair. */
function toUnits(text, points, unit = 0, point = 0) {
  while (point < points && unit < text.length) {
    unit += text.codePointAt(unit) > 0xffff ? 2 : 1;
    point += 1;
  }
  return unit;
}
