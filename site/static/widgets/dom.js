// The few lines of DOM building which the widgets share.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  function el(tag, attributes = {}, ...children) {
    return fill(document.createElement(tag), attributes, children);
  }

  function svg(tag, attributes = {}, ...children) {
    return fill(document.createElementNS(SVG, tag), attributes, children);
  }

  let count = 0;

  // A label and its control, tied together.
  function field(text, control) {
    control.id = `tt-field-${count++}`;
    return el("span", { class: "tt-field" }, el("label", { for: control.id }, text), control);
  }

  function numbers(text) {
    return text.split(/[\s,()[\]]+/).filter(Boolean).map(Number);
  }

  tangled.dom = { el, svg, field, numbers };
})();
