// The roofline: what a machine allows, what each program reached, and where a matrix product lies.
(() => {
  "use strict";
  const { el, field, svg } = tangled.dom;

  const HEIGHT = 380;
  const MARGIN = { left: 46, right: 12, top: 14, bottom: 42 };
  const STEPS = 48; // slider steps from 1 to 4096, four to an octave
  const LINE = 14; // pixels between two labels

  const size = (step) => Math.round(2 ** (step / 4));
  const step = (n) => Math.min(STEPS, Math.max(0, Math.round(4 * Math.log2(n))));
  const short = (x) => Number(x.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 3 });

  // A product of an M×K and a K×N matrix which reads both once and writes the result once.
  function work([m, n, k], itemsize) {
    const flops = 2 * m * n * k;
    const bytes = itemsize * (m * k + k * n + m * n);
    return { flops, bytes, intensity: flops / bytes };
  }

  const ceiling = ({ peak, bandwidth }, intensity) => Math.min(peak, bandwidth * intensity);

  function amount(x, unit) {
    const [prefix, scale] = [["G", 1e9], ["M", 1e6], ["k", 1e3]].find(([, by]) => x >= by) ?? ["", 1];
    return `${short(x / scale)} ${prefix}${unit}`;
  }

  function duration(seconds) {
    const [unit, scale] = [["s", 1], ["ms", 1e3], ["µs", 1e6], ["ns", 1e9]].find(([, by]) => seconds * by >= 1) ?? ["ns", 1e9];
    return `${short(seconds * scale)} ${unit}`;
  }

  class Roofline {
    constructor(place) {
      this.record = JSON.parse(place.querySelector("script").textContent);
      const { itemsize = 4, shape = [1024, 1024, 1024], roofs, points } = this.record;
      this.itemsize = itemsize;
      this.points = points.map((point) => ({ roof: 0, intensity: point.shape && work(point.shape, itemsize).intensity, ...point }));
      this.sliders = shape.map((n) => el("input", { type: "range", min: 0, max: STEPS, value: step(n) }));
      this.roof = el("select", {}, ...roofs.map(({ name }, i) => el("option", { value: i }, name)));
      this.picture = svg("svg", { role: "img" });
      this.status = el("p", { class: "tt-status", role: "status" });
      const table = el("details", {}, el("summary", {}, "The same as a table"), ...place.querySelectorAll("table"));
      const label = place.dataset.label ?? "Roofline";
      place.classList.add("tt-widget");
      place.setAttribute("role", "group");
      place.setAttribute("aria-label", label);
      place.replaceChildren(el("p", { class: "tt-widget-title" }, `${label}. ${this.record.machine ?? ""}`),
        this.picture, this.controls(), this.status, table);
      this.scales();
      new ResizeObserver(() => this.draw()).observe(this.picture.parentNode);
      this.draw();
    }

    controls() {
      this.sliders.forEach((slider) => slider.addEventListener("input", () => this.draw()));
      this.roof.addEventListener("change", () => this.draw());
      return el("div", { class: "tt-widget-controls" },
        el("div", {}, ...["M", "N", "K"].map((name, i) => field(name, this.sliders[i])), field("roof", this.roof)));
    }

    scales() {
      const { roofs } = this.record;
      const xs = this.points.map(({ intensity }) => intensity);
      const ys = this.points.map(({ gflops }) => gflops);
      this.x = [Math.min(0.1, ...xs) / 1.5, Math.max(1024, ...xs) * 1.5].map(Math.log10);
      this.y = [Math.min(1, ...ys) / 1.5, Math.max(...roofs.map(({ peak }) => peak), ...ys) * 1.6].map(Math.log10);
    }

    place(intensity, gflops) {
      const part = (value, [low, high]) => (Math.log10(value) - low) / (high - low);
      const { left, right, top, bottom } = MARGIN;
      return [
        left + part(intensity, this.x) * (this.width - left - right),
        top + (1 - part(gflops, this.y)) * (HEIGHT - top - bottom),
      ];
    }

    draw() {
      this.width = Math.max(280, this.picture.parentNode.clientWidth - 36);
      this.picture.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
      this.picture.replaceChildren(...this.axes(), ...this.lines(), ...this.here(), ...this.dots());
    }

    axes() {
      const ticks = ([low, high], every) => {
        const exponents = Array.from({ length: 12 }, (_, i) => i - 4);
        return exponents.flatMap((e) => every.map((n) => n * 10 ** e)).filter((t) => Math.log10(t) > low && Math.log10(t) < high);
      };
      const [bottom, right] = [HEIGHT - MARGIN.bottom, this.width - MARGIN.right];
      return [
        ...ticks(this.x, [1]).flatMap((t) => {
          const [x] = this.place(t, 1);
          return [svg("line", { class: "tt-line", x1: x, x2: x, y1: MARGIN.top, y2: bottom }),
            svg("text", { x, y: bottom + 16, "text-anchor": "middle" }, short(t))];
        }),
        ...ticks(this.y, this.y[1] - this.y[0] > 3 ? [1] : [1, 3]).flatMap((t) => {
          const [, y] = this.place(1, t);
          return [svg("line", { class: "tt-line", x1: MARGIN.left, x2: right, y1: y, y2: y }),
            svg("text", { x: MARGIN.left - 7, y: y + 4, "text-anchor": "end" }, short(t))];
        }),
        svg("text", { x: right, y: HEIGHT - 6, "text-anchor": "end" }, "FLOP per byte"),
        svg("text", { x: MARGIN.left + 6, y: MARGIN.top + 11 }, "GFLOP/s"),
      ];
    }

    // Each roof, named above its line, or below it where another name stands.
    lines() {
      const [low, high] = this.x.map((e) => 10 ** e);
      const taken = [];
      return this.record.roofs.flatMap((roof) => {
        const floor = Math.max(low, 10 ** this.y[0] / roof.bandwidth);
        const corners = [[floor, floor * roof.bandwidth], [roof.peak / roof.bandwidth, roof.peak], [high, roof.peak]];
        const path = corners.map(([x, y]) => this.place(x, y).join());
        const [x, y] = this.place(high, roof.peak);
        const free = taken.every((other) => Math.abs(other - y) >= LINE);
        taken.push(y);
        return [svg("path", { class: "tt-roof", d: `M${path.join("L")}` }),
          svg("text", { class: "tt-roof-name", x: x - 2, y: free ? y - 5 : y + LINE, "text-anchor": "end" }, `${roof.name}: ${short(roof.peak)}`)];
      });
    }

    dots() {
      const placed = this.points.map((point) => ({ ...point, at: this.place(point.intensity, point.gflops) }));
      placed.sort((a, b) => a.at[1] - b.at[1]);
      const taken = { start: -LINE, end: -LINE };
      return placed.flatMap(({ name, gflops, roof, intensity, at: [x, y] }) => {
        const anchor = x > this.width * 0.55 ? "end" : "start";
        const textX = x + (anchor === "end" ? -16 : 16);
        const textY = taken[anchor] = Math.max(y, taken[anchor] + LINE);
        const share = Math.round((100 * gflops) / ceiling(this.record.roofs[roof], intensity));
        return [svg("line", { class: "tt-leader", x1: x, y1: y, x2: textX + (anchor === "end" ? 3 : -3), y2: textY }),
          svg("circle", { class: "tt-point", cx: x, cy: y, r: 4.5 }, svg("title", {}, `${name}: ${short(gflops)} GFLOP/s, ${share} % of its roof`)),
          svg("text", { class: "tt-name", x: textX, y: textY + 4, "text-anchor": anchor }, name)];
      });
    }

    here() {
      const shape = this.sliders.map(({ value }) => size(Number(value)));
      this.sliders.forEach((slider, i) => {
        slider.previousSibling.textContent = `${"MNK"[i]} = ${shape[i]}`;
        slider.setAttribute("aria-valuetext", String(shape[i]));
      });
      const roof = this.record.roofs[this.roof.value];
      const { flops, bytes, intensity } = work(shape, this.itemsize);
      const reach = ceiling(roof, intensity);
      const bound = reach < roof.peak ? "memory" : "arithmetic";
      const text = `${amount(flops, "FLOP")} over ${amount(bytes, "B")}: ${short(intensity)} FLOP per byte. `
        + `Bound by ${bound}: at most ${short(reach)} GFLOP/s, so ${duration(flops / reach / 1e9)} at best.`;
      this.status.textContent = text;
      this.picture.setAttribute("aria-label", `Roofline on logarithmic axes with ${this.points.length} measured points. A product of ${shape.join(" × ")}: ${text}`);
      const [x, y] = this.place(intensity, reach);
      return [svg("path", { class: "tt-here", d: `M${x},${HEIGHT - MARGIN.bottom}L${x},${y}` }), svg("circle", { class: "tt-here-dot", cx: x, cy: y, r: 5 })];
    }
  }

  tangled.widgets.roofline = (place) => new Roofline(place);
})();
