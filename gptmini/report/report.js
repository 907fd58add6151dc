// Draws the report from its content: curves, samples, and the loss of each token.
import { addPanels, axes, color, drawCurves, plots } from "./charts.js";
import { element } from "./element.js";

const content = JSON.parse(document.getElementById("content").textContent);
const state = { axis: "step", visible: content.runs.map(() => true) };

// ------------------------------------------------------------------------------------------ curves

async function redraw() {
  await drawCurves(content.runs, state.axis, state.visible);
  document.body.dataset.drawn = "true";
}

function buttons() {
  const legend = document.getElementById("legend");
  content.runs.forEach((run, i) => {
    const dot = element("i", { "--run": color(i) });
    const button = element("button", { "aria-pressed": "true", title: "show or hide" }, dot, run.name);
    button.onclick = () => {
      state.visible[i] = !state.visible[i];
      button.setAttribute("aria-pressed", state.visible[i]);
      redraw();
    };
    legend.append(button);
  });
  const choice = document.getElementById("axis");
  for (const [axis, title] of Object.entries(axes)) {
    const button = element("button", { "aria-pressed": axis === state.axis }, title);
    button.onclick = () => {
      state.axis = axis;
      for (const other of choice.children) other.setAttribute("aria-pressed", other === button);
      redraw();
    };
    choice.append(button);
  }
}

// ------------------------------------------------------------------------------------------ samples

function column(i) {
  return element("div", { class: "column panel", "--run": color(i) }, element("h3", {}, content.runs[i].name));
}

function sampleOf(run, sample) {
  const val = run.metrics.filter((line) => line.split === "val" && line.step <= sample.step && line.loss !== null).pop();
  const loss = val ? ` validation loss ${val.loss.toFixed(3)}${val.step === sample.step ? "" : ` at ${val.step}`}` : "";
  return element("div", { class: "sample" }, element("b", {}, `step ${sample.step}`), element("span", {}, loss), element("pre", {}, sample.text.trim() || "(nothing)"));
}

/** The newest sample beside the first one; those between them behind a click. */
function samples() {
  const section = document.getElementById("samples");
  content.runs.forEach((run, i) => {
    if (!run.samples.length) return;
    section.hidden = false;
    const first = run.samples[0], newest = run.samples[run.samples.length - 1];
    const made = column(i);
    made.append(element("div", { class: "pair" }, ...(first === newest ? [first] : [first, newest]).map((sample) => sampleOf(run, sample))));
    if (run.samples.length > 2) {
      const timeline = element("div", { class: "timeline", tabindex: "0" }, ...run.samples.map((sample) => sampleOf(run, sample)));
      made.append(element("details", {}, element("summary", {}, `All ${run.samples.length} samples`), timeline));
    }
    section.append(made);
  });
}

// ------------------------------------------------------------------------------------------ tokens

const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "·");

function showTip(piece, target) {
  const [text, bits, alternatives] = piece;
  const tip = document.getElementById("tip");
  const percent = (p) => `${(100 * p).toPrecision(p < 0.1 ? 2 : 3)} %`;
  const rows = alternatives.map(([other, p]) => element("tr", other === text ? { class: "is" } : {}, element("td", {}, visible(other)), element("td", {}, percent(p))));
  tip.replaceChildren(element("div", {}, `${visible(text)}  ${bits.toFixed(2)} bits, ${percent(2 ** -bits)}`), element("table", {}, ...rows));
  tip.hidden = false;
  const box = target.getClientRects()[0];
  const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = box.bottom + 8 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(8, left) + scrollX}px`;
  tip.style.top = `${(below ? box.bottom + 8 : box.top - tip.offsetHeight - 8) + scrollY}px`;
}

function tokens() {
  const section = document.getElementById("tokens");
  const shown = new Map();
  content.runs.forEach((run, i) => {
    if (!run.worst.length) return;
    section.hidden = false;
    const made = column(i);
    for (const [kind, windows] of [["highest", run.worst], ["lowest", run.best]]) {
      for (const { loss, bits_per_byte, pieces } of windows) {
        const text = element("pre");
        for (const piece of pieces) {
          const span = element("span", { class: "piece", "--s": Math.min(piece[1] / 12, 1).toFixed(3) }, piece[0].replaceAll("\n", "↵\n"));
          shown.set(span, piece);
          text.append(span);
        }
        made.append(element("div", { class: "window" }, element("p", {}, element("b", {}, `${kind} loss`), ` ${loss.toFixed(3)} nats per token, ${bits_per_byte.toFixed(3)} bits per byte`), text));
      }
    }
    section.querySelector(".columns").append(made);
  });
  const over = (event) => {
    const piece = shown.get(event.target);
    if (piece) showTip(piece, event.target);
    else document.getElementById("tip").hidden = true;
  };
  document.addEventListener("pointerover", over);
  document.addEventListener("click", over);
}

addPanels(document.querySelector("#curves .plots"), plots.filter((plot) => plot.large));
addPanels(document.querySelector("#details .plots"), plots.filter((plot) => !plot.large));
buttons();
samples();
tokens();
redraw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } });
