// Code, tables and formulas larger than their place can be reached, and scrolled, by
// keyboard. The theme looks once. Widths change with fonts and windows.
(() => {
  "use strict";
  const WIDE = ".bd-article pre, .bd-article .pst-scrollable-table-container, "
    + ".bd-article mjx-container[display]";

  function reach() {
    for (const block of document.querySelectorAll(WIDE)) {
      const wide = block.scrollWidth > block.clientWidth;
      if (wide || block.scrollHeight > block.clientHeight) block.tabIndex = 0;
    }
  }

  const sizes = new ResizeObserver(reach);
  for (const block of document.querySelectorAll(WIDE)) sizes.observe(block);
  document.fonts.addEventListener("loadingdone", reach);
  addEventListener("load", () => window.MathJax?.startup?.promise?.then(reach));
})();
