// What the page remembers. Where the browser refuses storage, it lasts as long as the page.

/**
 * One remembered value.
 * @param {"localStorage"|"sessionStorage"} area Reaching for it throws where storage is refused.
 * @param {string} name
 */
export function remembered(area, name) {
  let own = "";
  return {
    get() {
      try {
        return window[area].getItem(name) || "";
      } catch {
        return own;
      }
    },
    /** @param {string} value Empty forgets. */
    set(value) {
      own = value;
      try {
        if (value) window[area].setItem(name, value);
        else window[area].removeItem(name);
      } catch {
        // kept above
      }
    },
  };
}
