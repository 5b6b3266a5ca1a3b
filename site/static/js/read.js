// Remembers which chapters a reader has read: in this browser alone, and nothing before
// the reader presses the button at a chapter's end for the first time.
(() => {
  "use strict";
  const KEY = "read";
  const root = new URL(document.documentElement.dataset.content_root, location).pathname;
  const nameOf = ({ pathname }) => pathname.slice(root.length);
  const kept = () => new Set(localStorage.getItem(KEY)?.split(" "));

  function toggle(name) {
    const names = kept();
    if (!names.delete(name)) names.add(name);
    if (names.size) localStorage.setItem(KEY, [...names].join(" "));
    else localStorage.removeItem(KEY);
  }

  function mark() {
    const names = kept();
    document.querySelector(".tt-done")?.setAttribute("aria-pressed", names.has(nameOf(location)));
    for (const link of document.querySelectorAll(".bd-links a, .toctree-wrapper a")) {
      link.querySelector(".tt-read")?.remove();
      if (!names.has(nameOf(link))) continue;
      link.insertAdjacentHTML("beforeend", '<span class="tt-read" role="img" aria-label="read"></span>');
    }
  }

  function offer(article) {
    article.insertAdjacentHTML("beforeend", `<div class="tt-end">
      <button class="tt-done" type="button">I have read this chapter</button>
      <small>Marked in the contents, in this browser and nowhere else.</small></div>`);
    article.querySelector(".tt-done").addEventListener("click", () => { toggle(nameOf(location)); mark(); });
  }

  const article = document.querySelector(".bd-article:has(.tt-guide)");
  if (article) offer(article);
  mark();
  addEventListener("storage", mark);
})();
