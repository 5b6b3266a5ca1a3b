// The graph viewer: what an operation makes, what it reads, and what reads it.
(() => {
  "use strict";
  const { el } = tangled.dom;

  class Viewer {
    constructor(place) {
      this.nodes = JSON.parse(place.querySelector("script").textContent).nodes;
      this.nodes.forEach((node, i) => { node.readers = this.nodes.flatMap(({ reads }, j) => (reads.includes(i) ? [j] : [])); });
      const picture = place.querySelector("svg");
      this.circles = this.nodes.map(({ age }) => picture.querySelector(`[data-age="${age}"]`));
      this.status = el("p", { class: "tt-status", role: "status" });
      const label = place.dataset.label ?? "Graph viewer";
      place.classList.add("tt-widget");
      place.setAttribute("role", "group");
      place.setAttribute("aria-label", label);
      place.replaceChildren(el("p", { class: "tt-widget-title" }, label), picture, this.status);
      this.circles.forEach((circle, i) => {
        circle.setAttribute("role", "button");
        circle.setAttribute("aria-label", this.sentence(i));
      });
      picture.addEventListener("click", ({ target }) => this.choose(target));
      picture.addEventListener("focusin", ({ target }) => this.choose(target));
      picture.addEventListener("keydown", (event) => this.walk(event));
      this.mark(this.nodes.length - 1);
    }

    names(numbers) {
      return numbers.length ? numbers.map((i) => this.nodes[i].name).join(", ") : "nothing";
    }

    sentence(i) {
      const { name, makes, reads, readers } = this.nodes[i];
      return `${name} makes ${makes}; reads ${this.names(reads)}; is read by ${this.names(readers)}`;
    }

    choose(target) {
      const found = this.circles.indexOf(target.closest("[data-age]"));
      if (found >= 0) this.mark(found);
    }

    // Up to what is read, down to what reads, sideways through the program.
    walk(event) {
      const { reads, readers } = this.nodes[this.chosen];
      const to = { ArrowUp: reads[0], ArrowDown: readers[0], ArrowLeft: this.chosen - 1, ArrowRight: this.chosen + 1 }[event.key];
      if (!event.key.startsWith("Arrow")) return;
      event.preventDefault();
      this.circles[to]?.focus();
    }

    mark(chosen) {
      this.chosen = chosen;
      const { reads, readers } = this.nodes[chosen];
      this.circles.forEach((circle, i) => {
        circle.setAttribute("tabindex", i === chosen ? 0 : -1);
        circle.setAttribute("aria-pressed", i === chosen);
        circle.classList.toggle("tt-near", reads.includes(i) || readers.includes(i));
      });
      this.status.textContent = `${this.sentence(chosen)}.`;
    }
  }

  tangled.widgets.graph = (place) => new Viewer(place);
})();
