// Choosing a word of an answer lays its map over the micrograph of the same bench: by pointer, or
// with the arrow keys. A word that is pressed stays; one that is only pointed at does not.
const COLOUR = [255, 96, 0];
const OPACITY = 0.75;

function lay(word) {
  const stage = element.closest(".mv-bench").querySelector(".mv-stage");
  const canvas = stage && stage.querySelector(".mv-map");
  if (!canvas) return;
  const context = canvas.getContext("2d");
  if (!word) {
    context.clearRect(0, 0, canvas.width, canvas.height);
    canvas.removeAttribute("data-word");
    return;
  }
  const side = Number(word.dataset.side);
  const weights = Uint8Array.from(atob(word.dataset.map), (c) => c.charCodeAt(0));
  const low = Math.min(...weights);
  const span = Math.max(1, Math.max(...weights) - low);
  canvas.width = canvas.height = side;
  const map = context.createImageData(side, side);
  weights.forEach((weight, i) => {
    map.data.set([...COLOUR, (255 * OPACITY * (weight - low)) / span], 4 * i);
  });
  context.putImageData(map, 0, 0);
  canvas.dataset.word = word.textContent;
}

const pressed = () => element.querySelector('.mv-word[aria-pressed="true"]');

function press(word) {
  const before = pressed();
  if (before) before.setAttribute("aria-pressed", "false");
  const said = element.querySelector(".mv-where");
  if (word === before) {
    lay(null);
    said.textContent = "Choose a word to see where it looked.";
    return;
  }
  word.setAttribute("aria-pressed", "true");
  lay(word);
  said.textContent = `“${word.textContent}” looked ${word.dataset.where}.`;
}

const wordOf = (event) => event.target.closest(".mv-word");

element.addEventListener("click", (event) => wordOf(event) && press(wordOf(event)));
element.addEventListener("mouseover", (event) => wordOf(event) && lay(wordOf(event)));
element.addEventListener("mouseout", (event) => wordOf(event) && lay(pressed()));
element.addEventListener("focusin", (event) => wordOf(event) && lay(wordOf(event)));
element.addEventListener("focusout", (event) => wordOf(event) && lay(pressed()));
element.addEventListener("keydown", (event) => {
  const word = wordOf(event);
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  if (!word || !(event.key in steps || event.key === "Home" || event.key === "End")) return;
  event.preventDefault();
  const words = [...element.querySelectorAll(".mv-word")];
  let next = words.indexOf(word) + (steps[event.key] || 0);
  if (event.key === "Home") next = 0;
  if (event.key === "End") next = words.length - 1;
  next = Math.min(words.length - 1, Math.max(0, next));
  words.forEach((other, i) => other.setAttribute("tabindex", i === next ? "0" : "-1"));
  words[next].focus();
});
// A new answer: the map of an old one must not stay.
watch("value", () => lay(null));
