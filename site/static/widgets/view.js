// View algebra: shape, strides and offset, counted in elements. Nothing here touches the DOM.
(() => {
  "use strict";
  const product = (sizes) => sizes.reduce((a, b) => a * b, 1);

  const tuple = (items) => `(${items.join(", ")}${items.length === 1 ? "," : ""})`;

  function rowMajor(shape) {
    return shape.map((_, axis) => product(shape.slice(axis + 1)));
  }

  function address(view, index) {
    return index.reduce((sum, i, axis) => sum + i * view.strides[axis], view.offset);
  }

  // Every index of the shape, the last axis fastest.
  function indices(shape) {
    return shape.reduce(
      (found, size) => found.flatMap((index) => Array.from({ length: size }, (_, i) => [...index, i])),
      [[]],
    );
  }

  function whole(values, what) {
    if (values.every(Number.isInteger)) return values;
    throw new Error(`${what}: expected whole numbers separated by commas.`);
  }

  function check(view, size) {
    whole([...view.shape, ...view.strides, view.offset], "view");
    if (view.shape.length !== view.strides.length)
      throw new Error(`shape ${tuple(view.shape)} and strides ${tuple(view.strides)}: give one stride for each axis.`);
    if (view.shape.length > 3) throw new Error(`shape ${tuple(view.shape)}: the explorer draws up to three axes.`);
    if (view.shape.some((n) => n < 0)) throw new Error(`shape ${tuple(view.shape)}: sizes are 0 or more.`);
    if (product(view.shape.map((n) => Math.max(n, 1))) > 64) throw new Error(`shape ${tuple(view.shape)}: the explorer draws up to 64 elements.`);
    for (const index of indices(view.shape)) {
      const cell = address(view, index);
      if (cell < 0 || cell >= size)
        throw new Error(`element ${tuple(index)} would lie in cell ${cell}; the strip has cells 0 to ${size - 1}.`);
    }
    return view;
  }

  function axisOf(view, axis) {
    const rank = view.shape.length;
    if (Number.isInteger(axis) && axis >= -rank && axis < rank) return (axis + rank) % rank;
    throw new Error(`axis ${axis}: this view has ${rank} ${rank === 1 ? "axis" : "axes"}, counted from 0.`);
  }

  // Axes which lie so in memory that they could be one: [[size, stride], ...]
  function runs({ shape, strides }) {
    const found = [];
    shape.forEach((size, axis) => {
      const last = found.at(-1);
      if (size === 1) return;
      if (last && last[1] === size * strides[axis]) found[found.length - 1] = [last[0] * size, strides[axis]];
      else found.push([size, strides[axis]]);
    });
    return found;
  }

  function stridesFor(view, shape) {
    if (product(shape) === 0) return rowMajor(shape);
    const left = runs(view);
    let [size, stride] = left.pop() ?? [1, 1];
    return shape.toReversed().map((n) => {
      if (size === 1 && n > 1) [size, stride] = left.pop();
      if (size % n) throw new Error(`reshape ${tuple(shape)}: no strides visit these cells in that order, so a copy is needed first.`);
      const mine = stride;
      [size, stride] = [size / n, stride * n];
      return mine;
    }).reverse();
  }

  function bounds(text, size) {
    const parts = text.split(":").map((part) => (part.trim() === "" ? null : Number(part)));
    const step = parts[2] ?? 1;
    if (step === 0 || !whole(parts.map((p) => p ?? 0), `slice ${text}`)) throw new Error("slice: the step is not 0.");
    const [low, high] = step > 0 ? [0, size] : [-1, size - 1];
    const place = (value, otherwise) =>
      value === null || value === undefined ? otherwise : Math.min(Math.max(value < 0 ? value + size : value, low), high);
    const start = place(parts[0], step > 0 ? low : high);
    const stop = place(parts[1], step > 0 ? high : low);
    return { start, step, count: Math.max(0, Math.ceil((stop - start) / step)) };
  }

  // Each operation: the arguments it suggests for a view, and the new view.
  const OPERATIONS = {
    permute: {
      suggest: ({ shape }) => shape.map((_, axis) => axis).reverse().join(", "),
      apply(view, text, parse) {
        const axes = whole(parse(text), "permute").map((axis) => axisOf(view, axis));
        if (new Set(axes).size !== view.shape.length || axes.length !== view.shape.length)
          throw new Error(`permute ${tuple(axes)}: name each of the ${view.shape.length} axes once.`);
        return { ...view, shape: axes.map((a) => view.shape[a]), strides: axes.map((a) => view.strides[a]) };
      },
    },
    reshape: {
      suggest: ({ shape }) => (shape.length > 1 ? [product(shape)] : [2, product(shape) / 2]).join(", "),
      apply(view, text, parse) {
        const shape = whole(parse(text), "reshape");
        if (product(shape) !== product(view.shape))
          throw new Error(`reshape ${tuple(shape)}: has ${product(shape)} elements, the view has ${product(view.shape)}.`);
        return { ...view, shape, strides: stridesFor(view, shape) };
      },
    },
    flip: {
      suggest: ({ shape }) => String(shape.length - 1),
      apply(view, text, parse) {
        const axis = axisOf(view, parse(text)[0]);
        const offset = view.offset + Math.max(view.shape[axis] - 1, 0) * view.strides[axis];
        return { ...view, offset, strides: view.strides.map((s, a) => (a === axis ? -s : s)) };
      },
    },
    slice: {
      suggest: ({ shape }) => shape.map((_, axis) => (axis === shape.length - 1 ? "::2" : ":")).join(", "),
      apply(view, text) {
        const parts = text.split(",").map((part) => part.trim());
        if (parts.length > view.shape.length)
          throw new Error(`slice [${text}]: ${parts.length} slices for ${view.shape.length} axes.`);
        const made = { shape: [], strides: [], offset: view.offset };
        view.shape.forEach((size, axis) => {
          const stride = view.strides[axis];
          const part = parts[axis] ?? ":";
          if (!part.includes(":")) {
            const [i] = whole([Number(part)], "slice");
            if (i < -size || i >= size) throw new Error(`index ${i}: axis ${axis} has size ${size}.`);
            made.offset += ((i + size) % size) * stride;
            return;
          }
          const { start, step, count } = bounds(part, size);
          made.shape.push(count);
          made.strides.push(step * stride);
          made.offset += count ? start * stride : 0;
        });
        return made;
      },
    },
    expand: {
      suggest: ({ shape }) => (shape.includes(1) ? shape.map((n) => (n === 1 ? 3 : n)) : [2, ...shape]).join(", "),
      apply(view, text, parse) {
        const shape = whole(parse(text), "expand");
        const extra = shape.length - view.shape.length;
        const strides = shape.map((n, axis) => {
          const old = axis < extra ? 1 : view.shape[axis - extra];
          if (extra < 0 || (n !== old && old !== 1))
            throw new Error(`expand ${tuple(shape)}: only an axis of size 1 can grow, and the view is ${tuple(view.shape)}.`);
          return axis < extra || n !== old ? 0 : view.strides[axis - extra];
        });
        return { ...view, shape, strides };
      },
    },
  };

  tangled.view = { address, check, indices, OPERATIONS, product, rowMajor, tuple };
})();
