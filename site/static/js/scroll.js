// Code that is wider than its place can be reached, and scrolled, by keyboard. The
// theme looks once, before the fonts have come; widths are right only after.
(() => {
  "use strict";
  function reach() {
    for (const block of document.querySelectorAll(".bd-article pre")) {
      if (block.scrollWidth > block.clientWidth) block.tabIndex = 0;
    }
  }

  document.fonts.ready.then(reach);
  addEventListener("resize", reach);
})();
