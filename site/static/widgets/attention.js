// The attention viewer: what every position of a sequence looks at, head by head.
(() => {
  "use strict";
  const { el, field } = tangled.dom;

  // Of one row of scores; hidden keys have the weight 0.
  function softmax(scores, sharpness, seen) {
    const scaled = scores.map((score, key) => (seen(key) ? score * sharpness : -Infinity));
    const most = Math.max(...scaled);
    const powers = scaled.map((score) => (most === -Infinity ? 0 : Math.exp(score - most)));
    const total = powers.reduce((sum, power) => sum + power, 0);
    return powers.map((power) => (total === 0 ? 0 : power / total));
  }

  const percent = (weight) => `${Math.round(100 * weight)} %`;

  class Viewer {
    constructor(place) {
      this.examples = JSON.parse(place.querySelector("script").textContent).examples;
      this.example = this.choice(this.examples.map(({ tokens }) => tokens.join(" ")));
      this.head = this.choice(this.examples[0].heads.map((_, i) => `${i + 1}`));
      this.sharpness = el("input", { type: "range", min: 0, max: 4, step: 0.1, value: 1 });
      this.causal = el("input", { type: "checkbox" });
      this.grid = el("div", { role: "grid", class: "tt-weights", "aria-label": "Weights: a row for each query, a column for each key" });
      this.status = el("p", { class: "tt-status", role: "status" });
      const label = place.dataset.label ?? "Attention viewer";
      place.classList.add("tt-widget");
      place.setAttribute("role", "group");
      place.setAttribute("aria-label", label);
      place.replaceChildren(el("p", { class: "tt-widget-title" }, label), this.controls(), this.grid, this.status);
      this.listen();
      this.query = this.examples[0].tokens.length - 1;
      this.draw();
    }

    choice(names) {
      return el("select", {}, ...names.map((name, i) => el("option", { value: i }, name)));
    }

    controls() {
      return el("div", { class: "tt-widget-controls" },
        el("div", {}, field("sequence", this.example), field("head", this.head),
          field("sharpness", this.sharpness), field("causal", this.causal)));
    }

    listen() {
      [this.example, this.head, this.sharpness, this.causal].forEach((control) => control.addEventListener("input", () => this.draw()));
      this.grid.addEventListener("pointerover", ({ target }) => this.choose(target));
      this.grid.addEventListener("focusin", ({ target }) => this.choose(target));
      this.grid.addEventListener("keydown", (event) => this.walk(event));
    }

    get tokens() { return this.examples[this.example.value].tokens; }

    row(query) {
      const scores = this.examples[this.example.value].heads[this.head.value][query];
      return softmax(scores, Number(this.sharpness.value), (key) => !this.causal.checked || key <= query);
    }

    draw() {
      const { tokens } = this;
      const names = el("div", { role: "row" }, el("span", { role: "columnheader" }, ""),
        ...tokens.map((token) => el("span", { role: "columnheader" }, token)));
      this.grid.replaceChildren(names, ...tokens.map((token, query) => {
        const cells = this.row(query).map((weight, key) => {
          const cell = el("span", { role: "gridcell", "aria-label": `${token} looks at ${tokens[key]}: ${percent(weight)}` });
          cell.style.setProperty("--weight", `${Math.round(100 * weight)}%`);
          return cell;
        });
        return el("div", { role: "row", tabindex: -1, "data-query": query }, el("span", { role: "rowheader" }, token), ...cells);
      }));
      this.mark();
    }

    choose(target) {
      const row = target.closest("[data-query]");
      if (!row || Number(row.dataset.query) === this.query) return;
      this.query = Number(row.dataset.query);
      this.mark();
    }

    walk(event) {
      const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      const query = Math.min(Math.max(this.query + by, 0), this.tokens.length - 1);
      this.grid.querySelector(`[data-query="${query}"]`).focus();
    }

    // Say what the chosen query looks at, the most first.
    mark() {
      for (const row of this.grid.querySelectorAll("[data-query]")) {
        const now = Number(row.dataset.query) === this.query;
        row.classList.toggle("tt-chosen", now);
        row.tabIndex = now ? 0 : -1;
      }
      const found = this.row(this.query).map((weight, key) => ({ weight, token: this.tokens[key] }));
      const seen = found.filter(({ weight }) => weight >= 0.005).sort((a, b) => b.weight - a.weight);
      this.status.textContent = `${this.tokens[this.query]} looks at ${seen.slice(0, 4).map(({ weight, token }) => `${token} (${percent(weight)})`).join(", ")}`;
    }
  }

  tangled.widgets.attention = (place) => new Viewer(place);
})();
