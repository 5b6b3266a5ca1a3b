// Loads a widget's scripts on the pages that contain one: <div class="tt-NAME">.
// They are no modules: browsers refuse those to a page that was opened as a file.
window.tangled = { widgets: {} };

(() => {
  "use strict";
  const here = document.currentScript.src;
  const SCRIPTS = { strides: ["dom", "view", "strides"], roofline: ["dom", "roofline"], attention: ["dom", "attention"], graph: ["dom", "graph"] };
  const loaded = new Map();

  function load(name) {
    return new Promise((done, failed) => {
      const script = document.createElement("script");
      Object.assign(script, { src: new URL(`../widgets/${name}.js`, here), async: false, onload: done, onerror: failed });
      document.head.append(script);
    });
  }

  for (const [name, scripts] of Object.entries(SCRIPTS)) {
    const places = document.querySelectorAll(`.tt-${name}`);
    if (places.length === 0) continue;
    for (const script of scripts) if (!loaded.has(script)) loaded.set(script, load(script));
    Promise.all(scripts.map((script) => loaded.get(script)))
      .then(() => places.forEach((place) => tangled.widgets[name](place)));
  }
})();
