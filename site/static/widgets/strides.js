// The strides explorer: a flat strip of memory, and a view of it.
(() => {
  "use strict";
  const { el, field, numbers } = tangled.dom;
  const { OPERATIONS, address, check, indices, product, rowMajor, tuple } = tangled.view;

  const LETTERS = ["i", "j", "k"];

  function start({ dataset }) {
    const shape = numbers(dataset.shape ?? "3, 4");
    const strides = dataset.strides === undefined ? rowMajor(shape) : numbers(dataset.strides);
    return { shape, strides, offset: Number(dataset.offset ?? 0) };
  }

  function formula(view, index) {
    const names = ["offset", ...index.map((_, a) => `${LETTERS[a]}·s${a}`)].join(" + ");
    const values = [view.offset, ...index.map((i, a) => `${i}·${view.strides[a] < 0 ? `(${view.strides[a]})` : view.strides[a]}`)];
    return `${names} = ${values.join(" + ")} = ${address(view, index)}`;
  }

  class Explorer {
    constructor(place) {
      this.first = start(place);
      this.size = Number(place.dataset.size ?? product(this.first.shape));
      this.history = [check(this.first, this.size)];
      this.names = (place.dataset.operations ?? Object.keys(OPERATIONS).join(",")).split(",");
      this.inputs = ["shape", "strides", "offset"].map((name) => el("input", { name, size: 8, autocomplete: "off", spellcheck: "false" }));
      this.operation = el("select", {}, ...this.names.map((name) => el("option", {}, name)));
      this.arguments = el("input", { size: 9, autocomplete: "off", spellcheck: "false" });
      this.status = el("p", { class: "tt-status", role: "status" });
      this.formula = el("p", { class: "tt-formula", role: "status" });
      this.grids = el("div", { class: "tt-grids" });
      this.strip = el("div", { class: "tt-strip", role: "img" });
      place.classList.add("tt-widget");
      place.setAttribute("role", "group");
      place.setAttribute("aria-label", place.dataset.label ?? "Strides explorer");
      place.replaceChildren(
        el("p", { class: "tt-widget-title" }, place.dataset.label ?? "Strides explorer"),
        this.controls(), this.status, el("p", { class: "tt-part" }, "the view"), this.grids,
        this.formula, el("p", { class: "tt-part" }, "the memory"), this.strip);
      this.listen();
      this.show([...this.first.shape].fill(0));
    }

    get view() { return this.history.at(-1); }

    controls() {
      const button = (text, action) => {
        const made = el("button", { type: "button" }, text);
        made.addEventListener("click", action);
        return made;
      };
      return el("div", { class: "tt-widget-controls" },
        el("div", {}, ...this.inputs.map((input) => field(input.name, input))),
        el("div", {}, field("operation", this.operation), field("arguments", this.arguments),
          button("Apply", () => this.apply()), button("Undo", () => this.undo()), button("Reset", () => this.reset())));
    }

    listen() {
      this.inputs.forEach((input) => input.addEventListener("change", () => this.edit()));
      this.operation.addEventListener("change", () => this.suggest());
      this.arguments.addEventListener("keydown", (event) => event.key === "Enter" && this.apply());
      this.grids.addEventListener("pointerover", (event) => this.point(event.target));
      this.grids.addEventListener("focusin", (event) => this.point(event.target));
      this.grids.addEventListener("keydown", (event) => this.walk(event));
      this.strip.addEventListener("pointerover", (event) => {
        const cell = Number(event.target.dataset.cell);
        const found = indices(this.view.shape).find((index) => address(this.view, index) === cell);
        if (found) this.mark(found);
      });
    }

    suggest() { this.arguments.value = OPERATIONS[this.operation.value].suggest(this.view); }

    attempt(make, say) {
      try {
        const view = check(make(), this.size);
        this.history.push(view);
        this.show(view.shape.map(() => 0));
        this.status.textContent = say(view);
        this.status.classList.remove("tt-error");
      } catch (error) {
        this.status.textContent = error.message;
        this.status.classList.add("tt-error");
      }
    }

    edit() {
      const [shape, strides, [offset]] = this.inputs.map((input) => numbers(input.value));
      this.attempt(() => ({ shape, strides, offset }), (view) => `A view of ${product(view.shape)} elements. No cell moved.`);
    }

    apply() {
      const [name, text] = [this.operation.value, this.arguments.value];
      this.attempt(
        () => OPERATIONS[name].apply(this.view, text, numbers),
        (view) => `${name} ${text}: shape ${tuple(view.shape)}, strides ${tuple(view.strides)}, offset ${view.offset}. No cell moved.`);
    }

    undo() {
      if (this.history.length > 1) this.history.pop();
      this.show(this.view.shape.map(() => 0));
    }

    reset() {
      this.history = [this.first];
      this.show(this.first.shape.map(() => 0));
    }

    show(index) {
      const { shape, strides, offset } = this.view;
      [shape.join(", "), strides.join(", "), offset].forEach((text, i) => { this.inputs[i].value = text; });
      this.status.textContent = "";
      this.suggest();
      this.draw();
      this.mark(index);
    }

    draw() {
      const { shape } = this.view;
      const [rows, columns] = [shape.at(-2) ?? 1, shape.at(-1) ?? 1];
      const planes = shape.length === 3 ? indices([shape[0]]) : [[]];
      this.grids.replaceChildren(...planes.map((plane) => this.plane(plane, rows, columns)));
      const seen = new Set(indices(shape).map((index) => address(this.view, index)));
      this.strip.replaceChildren(...Array.from({ length: this.size }, (_, cell) =>
        el("span", { "data-cell": cell, class: seen.has(cell) ? "tt-seen" : "" }, String(cell))));
    }

    plane(plane, rows, columns) {
      const rank = this.view.shape.length;
      const label = rank === 3 ? `Elements with i = ${plane[0]}` : "Elements of the view";
      return el("div", { role: "grid", class: "tt-grid", "aria-label": label },
        ...Array.from({ length: rows }, (_, r) => el("div", { role: "row" },
          ...Array.from({ length: columns }, (_, c) => {
            const index = [...plane, r, c].slice(rank === 0 ? 2 : rank === 1 ? 1 : 0);
            const cell = address(this.view, index);
            return el("span", { role: "gridcell", tabindex: -1, "data-index": index.join(","), "aria-label": `element ${tuple(index)}, cell ${cell}` }, String(cell));
          }))));
    }

    point(target) {
      if (target.dataset.index !== undefined) this.mark(numbers(target.dataset.index));
    }

    walk(event) {
      const rank = this.view.shape.length;
      const moves = { ArrowLeft: [rank - 1, -1], ArrowRight: [rank - 1, 1], ArrowUp: [rank - 2, -1], ArrowDown: [rank - 2, 1], PageUp: [rank - 3, -1], PageDown: [rank - 3, 1] };
      const [axis, by] = moves[event.key] ?? [-1, 0];
      if (axis < 0) return;
      event.preventDefault();
      const index = [...this.index];
      index[axis] = Math.min(Math.max(index[axis] + by, 0), this.view.shape[axis] - 1);
      this.grids.querySelector(`[data-index="${index.join(",")}"]`).focus();
    }

    // Light up one element, its cell, and faintly the rest of its row.
    mark(index) {
      this.index = index;
      const here = product(this.view.shape) ? address(this.view, index) : null;
      const row = (other) => other.slice(0, -1).join() === index.slice(0, -1).join();
      const rowCells = new Set(indices(this.view.shape).filter(row).map((other) => address(this.view, other)));
      for (const node of this.grids.querySelectorAll("[data-index]")) {
        const now = node.dataset.index === index.join(",");
        node.classList.toggle("tt-now", now);
        node.classList.toggle("tt-same", !now && Number(node.textContent) === here);
        node.tabIndex = now ? 0 : -1;
      }
      for (const node of this.strip.children) {
        node.classList.toggle("tt-now", Number(node.dataset.cell) === here);
        node.classList.toggle("tt-row", rowCells.has(Number(node.dataset.cell)));
      }
      this.formula.textContent = here === null ? "This view has no elements." : formula(this.view, index);
      this.strip.setAttribute("aria-label", `Memory, ${this.size} cells; ${here === null ? "none" : `cell ${here}`} is lit`);
    }
  }

  tangled.widgets.strides = (place) => new Explorer(place);
})();
