// Code, tables and formulas wider than their place can be reached, and scrolled, by
// keyboard. The theme looks once, before the fonts have come; widths are right only after.
(() => {
  "use strict";
  const WIDE = ".bd-article pre, .bd-article .pst-scrollable-table-container, "
    + ".bd-article mjx-container[display]";

  function reach() {
    for (const block of document.querySelectorAll(WIDE)) {
      if (block.scrollWidth > block.clientWidth) block.tabIndex = 0;
    }
  }

  document.fonts.ready.then(reach);
  addEventListener("load", () => window.MathJax?.startup?.promise?.then(reach));
  addEventListener("resize", reach);
})();
