// The curves of runs as Vega-Lite draws them (the global vegaEmbed), in the report and while a run trains.
import { element } from "./element.js";

const COLORS = ["#4269d0", "#e8930c", "#e0524d", "#2fa89a", "#9a5bd8", "#d2629a", "#5f8f2f", "#8a6d4b"];
const MANY_POINTS = 4000;  // above it a canvas draws, not one SVG element a point
const LABEL_WIDTH = 110;  // pixels for "5-gram 2.31", and more where a text's name follows

/** The colour of run i. */
export const color = (i) => COLORS[i % COLORS.length];

/** What the horizontal axis may be: the key in metrics.jsonl, and its name. */
export const axes = { step: "step", tokens: "tokens", elapsed_seconds: "seconds" };

/** Every plot: the key in metrics.jsonl, its title, and a line that says what is drawn. */
export const plots = [
  { field: "loss", title: "Loss", unit: "nats per token; thin: training, thick: validation", large: true, splits: true },
  { field: "bits_per_byte", title: "Bits per byte", unit: "size of the text when compressed with the model; thin: training, thick: validation; dashed: baselines", large: true, splits: true, baselines: true },
  { field: "lr", title: "Learning rate", unit: "AdamW's, at each logged step" },
  { field: "grad_norm", title: "Gradient norm", unit: "before clipping" },
  { field: "tokens_per_second", title: "Speed", unit: "tokens per second" },
];

/** Add an empty panel for each of these plots to `parent`. */
export function addPanels(parent, chosen) {
  for (const { field, title, unit, large } of chosen) {
    const size = large ? "plot panel large" : "plot panel";
    parent.append(element("div", { class: size }, element("h3", {}, title), element("p", {}, unit), element("div", { id: `plot-${field}` })));
  }
}

let drawing = Promise.resolve();  // one draw at a time: vegaEmbed is asynchronous
const views = new Map();  // plot -> what Vega draws it with

/**
 * Draw every plot that has a panel; resolves when all are drawn.
 * A run is {name, metrics: lines of metrics.jsonl, text: name of its text, baselines: {xz: bits per byte, ...}};
 * `axis` is a key of `axes`, and `visible` has a bool for each run.
 */
export function drawCurves(runs, axis = "step", visible = runs.map(() => true)) {
  drawing = drawing.then(async () => {
    const total = runs.reduce((sum, run) => sum + run.metrics.length, 0);
    for (const plot of plots) {
      const container = document.getElementById(`plot-${plot.field}`);
      if (!container) continue;
      const spec = specification(plot, runs, axis, visible, container.clientWidth);
      // ast: expressions are interpreted, as a Content-Security-Policy may forbid eval
      const options = { actions: false, ast: true, defaultStyle: false, tooltip: { disableDefaultStyle: true }, renderer: total > MANY_POINTS ? "canvas" : "svg" };
      views.get(plot)?.finalize();
      views.set(plot, (await vegaEmbed(container, spec, options)).view);
    }
  });
  return drawing;
}

/** Add new lines of metrics.jsonl to the curves of the one run that is drawn: much less work than to draw it anew. */
export function extendCurves(run, lines) {
  drawing = drawing.then(async () => {
    for (const [plot, view] of views) await view.insert("points", points(plot, [{ ...run, metrics: lines }], "step", [true])).runAsync();
  });
  return drawing;
}

function points(plot, runs, axis, visible) {
  const found = [];
  runs.forEach((run, i) => {
    if (!visible[i]) return;
    for (const line of run.metrics) {
      const y = line[plot.field];
      if (y === null || y === undefined || !plot.splits && line.split !== "train") continue;
      const split = plot.splits ? `split: ${line.split}\n` : "";
      const about = `run: ${run.name}\n${split}step: ${line.step}\n${plot.field}: ${y}`;
      found.push({ run: run.name, split: line.split, x: line[axis], y, step: line.step, about });
    }
  });
  return found;
}

/** The Vega-Lite specification of one plot: lines, baselines, and the point nearest to the pointer. */
function specification(plot, runs, axis, visible, width) {
  const names = runs.map((run) => run.name);
  // an axis from zero would flatten the curves of loss and gradient norm
  const zero = plot.field === "lr" || plot.field === "tokens_per_second";
  const x = { field: "x", type: "quantitative", title: axes[axis], axis: { tickCount: Math.max(3, Math.floor(width / 90)), format: "~s", grid: false }, scale: { nice: false } };
  const padding = plot.baselines ? 20 : 0;  // pixels, so that a label stays inside the plot
  const y = { field: "y", type: "quantitative", title: null, scale: { zero, padding }, axis: { tickCount: 5, format: plot.field === "lr" ? "~g" : "~s" } };
  const encoding = { x, y, color: { field: "run", type: "nominal", legend: null, scale: { domain: names, range: names.map((_, i) => color(i)) } } };
  // What the pointer meets is the cell around the nearest point; of the point's texts it has the description.
  const tooltip = { field: "description", type: "nominal" };
  const of = (split) => [{ filter: `datum.split === '${split}'` }];
  const thin = { type: "line", strokeWidth: plot.splits ? 1.3 : 1.6, opacity: plot.splits ? 0.65 : 1 };
  const layer = [{ transform: of("train"), mark: thin, encoding }];
  if (plot.splits) layer.push({ transform: of("val"), mark: { type: "line", strokeWidth: 2.4, point: { size: 34, filled: true } }, encoding });
  if (plot.baselines) layer.push(...baselineLayers(runs.filter((_, i) => visible[i]), width));
  layer.push({
    params: [{ name: "near", select: { type: "point", on: "pointerover", clear: "pointerout", nearest: true } }],
    mark: { type: "point", filled: true, size: 70, cursor: "default" },
    encoding: { ...encoding, description: { field: "about" }, opacity: { condition: { param: "near", empty: false, value: 1 }, value: 0 }, tooltip },
  });
  const size = { width: "container", height: plot.large ? 270 : 190, autosize: { type: "fit", contains: "padding" } };
  return { ...size, data: { name: "points", values: points(plot, runs, axis, visible) }, layer, config: theme() };
}

/** Dashed lines with their names; where runs are of several texts, each says whose it is. */
function baselineLayers(runs, width) {
  const several = new Set(runs.filter((run) => Object.keys(run.baselines).length).map((run) => run.text)).size > 1;
  const found = new Map();
  for (const run of runs) {
    for (const [name, y] of Object.entries(run.baselines)) {
      const label = `${name} ${y.toFixed(2)}${several ? ` ${run.text}` : ""}`;
      found.set(label, { label, y });
    }
  }
  const lines = [...found.values()].sort((a, b) => a.y - b.y);
  if (!lines.length) return [];  // Vega would name an empty layer to those who hear the page
  // Neighbours may be nearly equal, so their labels stand beside each other, then above and below the lines.
  const longest = Math.max(0, ...lines.map(({ label }) => label.length));
  const columns = Math.max(1, Math.floor((width - 40) / Math.max(LABEL_WIDTH, 7 * longest)));
  lines.forEach((line, i) => {
    line.dx = 4 + (i % columns) * (width - 40) / columns;
    line.dy = Math.floor(i / columns) % 2 ? 9 : -8;
  });
  const at = { y: { field: "y", type: "quantitative" } };
  const label = { type: "text", align: "left", baseline: "middle", dx: { expr: "datum.dx" }, dy: { expr: "datum.dy" }, fontSize: 11.5 };
  const named = { ...at, x: { value: 0 }, text: { field: "label" } };
  const data = { values: lines };
  return [
    { data, mark: { type: "rule", strokeDash: [5, 4], color: property("--soft"), opacity: 0.8 }, encoding: at },
    { data, mark: { ...label, stroke: property("--panel"), strokeWidth: 4 }, encoding: named },
    { data, mark: { ...label, color: property("--soft") }, encoding: named },
  ];
}

/** The value of a custom property of looks.css. */
const property = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function theme() {
  const soft = property("--soft"), line = property("--line");
  const font = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
  return {
    background: null, font,
    view: { stroke: null },
    axis: { labelColor: soft, titleColor: soft, gridColor: property("--grid"), domainColor: line, tickColor: line, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
  };
}
