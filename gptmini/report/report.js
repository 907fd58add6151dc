"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const colors = ["#4269d0", "#e8930c", "#e0524d", "#2fa89a", "#9a5bd8", "#d2629a", "#5f8f2f", "#8a6d4b"];
const color = (i) => colors[i % colors.length];
const axes = { step: "step", tokens: "tokens", elapsed_seconds: "seconds" };
const state = { axis: "step", visible: content.runs.map(() => true) };

const plots = [
  { field: "loss", title: "Loss", unit: "nats per token; thin: training, thick: validation", large: true, splits: true },
  { field: "bits_per_byte", title: "Bits per byte", unit: "size of the text when compressed with the model; thin: training, thick: validation; dashed: baselines", large: true, splits: true, baselines: true },
  { field: "lr", title: "Learning rate", unit: "AdamW's, at each logged step" },
  { field: "grad_norm", title: "Gradient norm", unit: "before clipping" },
  { field: "tokens_per_second", title: "Speed", unit: "tokens per second" },
];

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// ------------------------------------------------------------------------------------------ curves

function points(plot) {
  const found = [];
  content.runs.forEach((run, i) => {
    if (!state.visible[i]) return;
    for (const line of run.metrics) {
      if (line[plot.field] === null || line[plot.field] === undefined) continue;
      if (!plot.splits && line.split !== "train") continue;
      found.push({ run: run.name, split: line.split, x: line[state.axis], y: line[plot.field], step: line.step,
        about: `run: ${run.name}; ${plot.splits ? `split: ${line.split}; ` : ""}step: ${line.step}; ${plot.field}: ${line[plot.field]}` });
    }
  });
  return found;
}

function specification(plot, values, width) {
  const names = content.runs.map((run) => run.name);
  const several = names.length > 1;
  const title = axes[state.axis];
  const zero = plot.field === "lr" || plot.field === "tokens_per_second";
  // an axis from zero would flatten the curves of loss and gradient norm
  const x = { field: "x", type: "quantitative", title, axis: { tickCount: Math.max(3, Math.floor(width / 90)), format: "~s", grid: false }, scale: { nice: false } };
  const padding = plot.baselines ? 20 : 0;  // pixels, so that the lowest label stays above the axis
  const y = { field: "y", type: "quantitative", title: null, scale: { zero, padding }, axis: { tickCount: 5, format: plot.field === "lr" ? "~g" : "~s" } };
  const encodedColor = { field: "run", type: "nominal", legend: null, scale: { domain: names, range: names.map((_, i) => color(i)) } };
  const tooltip = [
    ...(several ? [{ field: "run", type: "nominal" }] : []),
    ...(plot.splits ? [{ field: "split", type: "nominal" }] : []),
    { field: "step", type: "quantitative" },
    { field: "y", type: "quantitative", title: plot.field, format: "" },
  ];
  const of = (split) => ({ filter: `datum.split === '${split}'` });
  const layer = [
    {
      transform: [of("train")],
      mark: { type: "line", strokeWidth: plot.splits ? 1.3 : 1.6, opacity: plot.splits ? 0.65 : 1, interpolate: "linear" },
      encoding: { x, y, color: encodedColor },
    },
  ];
  if (plot.splits) {
    layer.push({
      transform: [of("val")],
      mark: { type: "line", strokeWidth: 2.4, point: { size: 34, filled: true } },
      encoding: { x, y, color: encodedColor },
    });
  }
  if (plot.baselines) {
    const shown = {};
    content.runs.forEach((run, i) => {
      if (state.visible[i]) for (const [name, value] of Object.entries(run.baselines)) shown[`${name} ${value.toFixed(2)}`] = { name, value };
    });
    const lowest = Math.min(...Object.values(shown).map(({ value }) => value));
    // labels above their lines, but the lowest below: two baselines may be nearly equal
    const lines = Object.entries(shown).map(([label, { value }]) => ({ label, y: value, dy: value === lowest ? 9 : -8 }));
    if (lines.length) {
      const soft = variable("--soft");
      const at = { y: { field: "y", type: "quantitative" } };
      const label = { type: "text", align: "left", baseline: "middle", dx: 4, dy: { expr: "datum.dy" }, fontSize: 11.5 };
      const named = { ...at, x: { value: 0 }, text: { field: "label" } };
      layer.push(
        { data: { values: lines }, mark: { type: "rule", strokeDash: [5, 4], color: soft, opacity: 0.8 }, encoding: at },
        { data: { values: lines }, mark: { ...label, stroke: variable("--panel"), strokeWidth: 4 }, encoding: named },
        { data: { values: lines }, mark: { ...label, color: soft }, encoding: named },
      );
    }
  }
  layer.push({
    params: [{ name: "near", select: { type: "point", on: "pointerover", clear: "pointerout", nearest: true } }],
    mark: { type: "point", filled: true, size: 70, cursor: "default" },
    encoding: { x, y, color: encodedColor, description: { field: "about" }, opacity: { condition: { param: "near", empty: false, value: 1 }, value: 0 }, tooltip },
  });
  return { width: "container", height: plot.large ? 270 : 190, autosize: { type: "fit", contains: "padding" }, data: { values }, layer };
}

function theme() {
  const ink = variable("--ink"), soft = variable("--soft"), line = variable("--line"), grid = variable("--grid");
  const font = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
  return {
    background: null, font,
    view: { stroke: null },
    axis: { labelColor: soft, titleColor: soft, gridColor: grid, domainColor: line, tickColor: line, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", labelFont: font, titleFont: font },
    text: { font, color: ink },
  };
}

async function draw() {
  const config = theme();
  const total = content.runs.reduce((sum, run) => sum + run.metrics.length, 0);
  for (const plot of plots) {
    const container = document.getElementById(`plot-${plot.field}`);
    const values = points(plot);
    const spec = specification(plot, values, container.clientWidth);
    await vegaEmbed(container, { ...spec, config }, { actions: false, renderer: total > 4000 ? "canvas" : "svg" });
  }
  document.body.dataset.drawn = "true";
}

let drawing = Promise.resolve();  // one draw at a time: vegaEmbed is asynchronous
const redraw = () => { drawing = drawing.then(draw); };

function panels() {
  for (const { field, title, unit, large } of plots) {
    const container = element("div", { id: `plot-${field}` });
    const panel = element("div", { class: large ? "plot large" : "plot" }, element("h3", {}, title), element("p", {}, unit), container);
    document.getElementById("plots").append(panel);
  }
}

function buttons() {
  const legend = document.getElementById("legend");
  content.runs.forEach((run, i) => {
    const dot = element("i", { style: `--run:${color(i)}` });
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
  return element("div", { class: "column", style: `--run:${color(i)}` }, element("h3", {}, content.runs[i].name));
}

function samples() {
  const section = document.getElementById("samples");
  content.runs.forEach((run, i) => {
    if (!run.samples.length) return;
    section.hidden = false;
    const timeline = element("div", { class: "timeline", tabindex: "0" });
    for (const sample of run.samples) {
      const val = run.metrics.filter((line) => line.split === "val" && line.step <= sample.step && line.loss !== null).pop();
      const loss = val ? ` validation loss ${val.loss.toFixed(3)}${val.step === sample.step ? "" : ` at ${val.step}`}` : "";
      timeline.append(element("div", { class: "sample" }, element("b", {}, `step ${sample.step}`), element("span", {}, loss), element("pre", {}, sample.text.trim() || "(nothing)")));
    }
    const made = column(i);
    made.append(timeline);
    section.querySelector(".columns").append(made);
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
          const span = element("span", { class: "piece", style: `--s:${Math.min(piece[1] / 12, 1).toFixed(3)}` }, piece[0].replaceAll("\n", "↵\n"));
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

panels();
buttons();
samples();
tokens();
redraw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } });
