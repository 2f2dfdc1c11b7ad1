// A canvas whose value is what is drawn on it: a PNG as a data URL, after each stroke; "" once it is cleared.
// Gradio runs this when the page is there, with `element` (the component), `props` (its value and options) and `trigger`.

const canvas = element.querySelector("canvas");
const context = canvas.getContext("2d");
let last = null; // where the stroke under way has got to: x, y in pixels of the canvas

function clear() {
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
}

function tell(value) {
  props.value = value;
  trigger("submit");
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
}

function drawTo(next) {
  context.beginPath();
  context.moveTo(...last);
  context.lineTo(...next);
  context.stroke();
  last = next;
}

function end() {
  if (last) {
    last = null;
    tell(canvas.toDataURL("image/png"));
  }
}

clear();
Object.assign(context, { lineWidth: props.stroke, lineCap: "round", lineJoin: "round" });
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  last = place(event);
  drawTo(last); // a dot, should it stay there
});
canvas.addEventListener("pointermove", (event) => last && drawTo(place(event)));
canvas.addEventListener("pointerup", end);
canvas.addEventListener("pointercancel", end);
element.querySelector("button").addEventListener("click", () => {
  clear();
  tell("");
});
