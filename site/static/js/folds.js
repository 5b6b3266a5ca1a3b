// A link to a folded cell opens the folds around it, and its own.
(() => {
  "use strict";
  function reveal() {
    const target = document.querySelector(".bd-article :target");
    if (!target) return;
    const own = target.matches("div.cell") ? target.querySelectorAll(":scope > details") : [];
    const closed = [...own].filter(({ open }) => !open);
    for (let fold = target.closest("details"); fold; fold = fold.parentElement.closest("details")) {
      if (!fold.open) closed.push(fold);
    }
    for (const fold of closed) fold.open = true;
    if (closed.length) target.scrollIntoView();
  }

  addEventListener("hashchange", reveal);
  addEventListener("load", reveal);
})();
