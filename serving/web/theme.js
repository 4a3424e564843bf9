// Runs before the first paint, so that the page never flashes in the wrong colours.
(() => {
  const KEY = "rag-fti.theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage is switched off: follow the system
    }
  };
  const apply = () => {
    const theme = stored() || (system.matches ? "dark" : "light");
    document.documentElement.dataset.theme = theme;
  };
  system.addEventListener("change", apply);
  apply();
})();
