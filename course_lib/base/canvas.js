// The front end of canvas.py: a grid of pixels to draw on with mouse, finger or pen, and the kernel's answer beside it.

const PAUSE = 120; // ms between two messages to the kernel
const STEPS = 100; // that undo remembers

// The cells from one to another in a straight line (Bresenham 1965), without the first.
function* between([x, y], [toX, toY]) {
  const dx = Math.abs(toX - x), dy = Math.abs(toY - y);
  let error = dx - dy;
  while (x !== toX || y !== toY) {
    const twice = 2 * error;
    if (twice > -dy) { error -= dy; x += Math.sign(toX - x); }
    if (twice < dx) { error += dx; y += Math.sign(toY - y); }
    yield [x, y];
  }
}

function render({ model, el }) {
  const [height, width] = model.get("shape");
  const read = (name) => { const v = model.get(name); return new Uint8Array(v.buffer, v.byteOffset, v.byteLength); };
  const make = (tag, parent, set = {}, style = {}) => {
    const made = parent.appendChild(Object.assign(document.createElement(tag), set));
    Object.assign(made.style, style);
    return made;
  };

  el.classList.add("jupyter-widgets");
  const row = make("div", el, {}, { display: "flex", flexWrap: "wrap", gap: "8px", padding: "1px" });
  const look = { width: "min(320px, 100%)", aspectRatio: `${width} / ${height}`, boxShadow: "0 0 0 1px #888" };
  const paper = make("canvas", row, { width, height },
    { ...look, imageRendering: "pixelated", touchAction: "none", cursor: "crosshair" });
  const answer = make("img", row, { alt: "the answer" }, look);
  const tools = make("div", el, {}, { display: "flex", flexWrap: "wrap", gap: "4px", margin: "8px 0" });
  const problem = make("div", el, {}, { color: "#b00020" });

  let pixels = read("value").slice(), undo = [], erasing = false, last = null, trail = [], timer = null, address = "";

  function paint() {
    const image = new ImageData(width, height);
    pixels.forEach((on, k) => image.data.set(on ? [0, 0, 0, 255] : [255, 255, 255, 255], 4 * k));
    paper.getContext("2d").putImageData(image, 0, 0);
  }
  function changed() {
    paint();
    timer ??= setTimeout(() => {
      timer = null;
      model.set("value", new DataView(pixels.slice().buffer));
      model.save_changes();
    }, PAUSE);
  }
  function remember() { undo = [...undo.slice(1 - STEPS), pixels.slice()]; }
  function replace(by) { remember(); pixels = by.slice(); changed(); }

  // One pixel wide: of three cells around a corner the middle one goes, unless a line was there before.
  function draw([x, y]) {
    if (erasing) {
      for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++)
        pixels.fill(0, v * width + Math.max(0, x - 1), v * width + Math.min(width, x + 2));
      return;
    }
    if (x < 0 || y < 0 || x >= width || y >= height) { trail = []; return; }
    const [before, middle] = trail.slice(-2);
    if (middle?.fresh && Math.abs(before.x - x) === 1 && Math.abs(before.y - y) === 1) {
      pixels[middle.y * width + middle.x] = 0;
      trail.pop();
    }
    trail.push({ x, y, fresh: !pixels[y * width + x] });
    pixels[y * width + x] = 1;
  }
  function cell(event) {
    const box = paper.getBoundingClientRect();
    return [Math.floor((event.clientX - box.left) / box.width * width),
      Math.floor((event.clientY - box.top) / box.height * height)];
  }
  function move(event) {
    if (!last) return;
    const next = cell(event);
    for (const place of between(last, next)) draw(place);
    last = next;
    changed();
  }
  paper.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    paper.setPointerCapture(event.pointerId);
    remember();
    trail = [];
    draw(last = cell(event));
    changed();
  });
  paper.addEventListener("pointermove", (event) => (event.getCoalescedEvents?.() ?? [event]).forEach(move));
  for (const end of ["pointerup", "pointercancel"]) paper.addEventListener(end, () => { last = null; });

  function button(textContent, onclick) { return make("button", tools, { type: "button", textContent, onclick }); }
  const modes = [false, true].map((which) => button(which ? "eraser" : "pen", () => choose(which)));
  function choose(which) {
    erasing = which;
    modes.forEach((one, k) => {
      one.setAttribute("aria-pressed", which === Boolean(k));
      one.style.fontWeight = which === Boolean(k) ? "bold" : "";
    });
  }
  button("undo", () => { if (undo.length) { pixels = undo.pop(); changed(); } });
  button("clear", () => replace(new Uint8Array(width * height)));
  model.get("names").forEach((name, k) =>
    button(name, () => replace(read("starts").subarray(k * width * height, (k + 1) * width * height))));

  function show() {
    URL.revokeObjectURL(address);
    answer.src = address = URL.createObjectURL(new Blob([read("answer")], { type: "image/png" }));
    problem.textContent = model.get("problem");
  }
  model.on("change:answer change:problem", show);
  model.on("change:value", () => { // from Python, or from another view; what is being drawn here counts more
    if (!timer && !last) { pixels = read("value").slice(); paint(); }
  });
  choose(false);
  paint();
  show();
}

export default { render };
