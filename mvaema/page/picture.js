// Choosing a region: drag over the picture. The four numbers below it do the same by keyboard.
// `element` is the component, which stays when its content is replaced; `trigger` tells the server.
let from = null;

function at(stage, event) {
  const frame = stage.getBoundingClientRect();
  const share = (value, size) => Math.min(1, Math.max(0, value / size));
  return [
    share(event.clientX - frame.left, frame.width),
    share(event.clientY - frame.top, frame.height),
  ];
}

function box(stage, a, b) {
  const width = Number(stage.dataset.width);
  const height = Number(stage.dataset.height);
  return [
    Math.round(Math.min(a[0], b[0]) * width),
    Math.round(Math.min(a[1], b[1]) * height),
    Math.round(Math.max(a[0], b[0]) * width),
    Math.round(Math.max(a[1], b[1]) * height),
  ];
}

element.addEventListener("pointerdown", (event) => {
  const stage = event.target.closest(".mv-stage");
  if (!stage || event.button !== 0) return;
  from = at(stage, event);
  stage.setPointerCapture(event.pointerId);
});

element.addEventListener("pointermove", (event) => {
  const stage = event.target.closest(".mv-stage");
  if (!stage || from === null) return;
  const to = at(stage, event);
  const mark = stage.querySelector(".mv-region");
  mark.hidden = false;
  mark.style.left = `${Math.min(from[0], to[0]) * 100}%`;
  mark.style.top = `${Math.min(from[1], to[1]) * 100}%`;
  mark.style.width = `${Math.abs(from[0] - to[0]) * 100}%`;
  mark.style.height = `${Math.abs(from[1] - to[1]) * 100}%`;
});

element.addEventListener("pointerup", (event) => {
  const stage = event.target.closest(".mv-stage");
  if (!stage || from === null) return;
  const chosen = box(stage, from, at(stage, event));
  from = null;
  if (chosen[2] - chosen[0] > 3 && chosen[3] - chosen[1] > 3) {
    trigger("select", { region: chosen });
  }
});

element.addEventListener("pointercancel", () => {
  from = null;
});
