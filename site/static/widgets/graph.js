// The graph viewer: what an operation makes, what it reads, and what reads it; and how a graph folds.
(() => {
  "use strict";
  const { el, field } = tangled.dom;

  class Viewer {
    constructor(place) {
      const { nodes, frames = [{ nodes, told: "" }] } = JSON.parse(place.querySelector("script").textContent);
      const later = place.querySelector("template")?.content.querySelectorAll("svg") ?? [];
      this.frames = frames;
      this.pictures = [place.querySelector("svg"), ...later];
      this.pictures.forEach((picture) => this.listen(picture));
      this.holder = el("div");
      this.status = el("p", { class: "tt-status", role: "status" });
      const label = place.dataset.label ?? "Graph viewer";
      place.classList.add("tt-widget");
      place.setAttribute("role", "group");
      place.setAttribute("aria-label", label);
      place.replaceChildren(el("p", { class: "tt-widget-title" }, label), ...this.controls(), this.holder, this.status);
      this.show(0);
    }

    listen(picture) {
      picture.addEventListener("click", ({ target }) => this.choose(target));
      picture.addEventListener("focusin", ({ target }) => this.choose(target));
      picture.addEventListener("keydown", (event) => this.walk(event));
    }

    // A slider through the pictures, where there are several.
    controls() {
      const last = this.frames.length - 1;
      if (!last) return [];
      const slider = el("input", { type: "range", min: 0, max: last, value: 0 });
      slider.addEventListener("input", () => this.show(Number(slider.value)));
      return [el("div", { class: "tt-widget-controls" }, el("div", {}, field(`rules fired, of ${last}`, slider)))];
    }

    show(number) {
      const { nodes, told } = this.frames[number];
      const picture = this.pictures[number];
      Object.assign(this, { nodes, told });
      nodes.forEach((node, i) => { node.readers = nodes.flatMap(({ reads }, j) => (reads.includes(i) ? [j] : [])); });
      this.circles = nodes.map(({ age }) => picture.querySelector(`[data-age="${age}"]`));
      this.circles.forEach((circle, i) => {
        circle.setAttribute("role", "button");
        circle.setAttribute("aria-label", this.sentence(i));
      });
      this.holder.replaceChildren(picture);
      this.mark(nodes.length - 1);
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
      this.status.textContent = `${this.told} ${this.sentence(chosen)}.`.trim();
    }
  }

  tangled.widgets.graph = (place) => new Viewer(place);
})();
