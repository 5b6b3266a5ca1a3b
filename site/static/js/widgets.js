// Loads a widget's module on the pages that contain one: <div class="tt-NAME">.
const NAMES = ["strides", "roofline"];

for (const name of NAMES) {
  const places = document.querySelectorAll(`.tt-${name}`);
  if (places.length === 0) continue;
  const { default: build } = await import(`../widgets/${name}.js`);
  places.forEach(build);
}
