/** Watch: a run as it trains, from what it writes; and one prompt continued by each checkpoint that it keeps. */

import { addPanels, drawCurves, extendCurves, plots } from "./charts.js";
import { CheckpointSlider } from "./checkpoints.js";
import { byId, showError } from "./dom.js";
import { element } from "./element.js";

const number = (value, digits = 0) => Number(value).toLocaleString("en", { maximumFractionDigits: digits });

/** Seconds as people say them. */
export function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** The library that draws the curves, loaded when it is first needed; it sets the global vegaEmbed. */
let library;
function loadLibrary() {
  library ??= new Promise((resolve, reject) => {
    const script = element("script", { src: "vega.js" });
    script.onload = resolve;
    script.onerror = () => reject(new Error("The curves need a package: pip install 'gptmini[report]', and start gptmini serve again"));
    document.head.append(script);
  });
  return library;
}

export class Watch {
  /** onCheckpoint(): a run that had no checkpoint has one, so that there is a model to play with. */
  constructor(engine, onCheckpoint) {
    this.engine = engine;
    this.onCheckpoint = onCheckpoint;
    this.stop = null;
    this.error = element("p", { class: "error", role: "alert", hidden: "" });
    this.curvesError = element("p", { class: "error", hidden: "" });
    this.state = element("p", { class: "state", role: "status" });
    this.progress = element("progress", { max: 1, value: 0, "aria-label": "Steps done" });
    this.figures = element("dl", { class: "figures" });
    this.curves = element("div", { class: "plots" });
    this.samples = element("ol", { class: "timeline", tabindex: 0, "aria-label": "Samples, the newest first" });
    this.slider = new CheckpointSlider(engine);
    const samples = element("section", { class: "view" }, element("h2", {}, "Samples"), element("p", { class: "about" }, "What the run writes as it trains, the newest first; the same seed each time."), this.samples);
    this.halves = element("div", { class: "halves" }, samples, this.slider.root);
    this.curvesTitle = element("h2", {}, "Curves");
    byId("watch").replaceChildren(this.error, this.state, this.progress, this.figures, this.curvesTitle, this.curvesError, this.curves, this.halves);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.drawn = 0;  // in other colours
      this.draw();
    });
    document.addEventListener("visibilitychange", () => this.draw());
  }

  setModel(info) {
    this.leave();
    this.info = info;
    this.slider.setModel(info);
  }

  enter() {
    if (this.stop) return;
    this.say(this.info.run ? "" : `${this.info.name} is a model without a run: there is nothing to watch.`);
    if (!this.info.run) return;
    this.slider.show();
    const on = {
      metrics: (lines) => (this.metrics.push(...lines), this.draw()),
      samples: (lines) => this.addSamples(lines),
      state: (state) => this.showState(state),
      restart: () => this.restart(),
      error: (error) => showError(this.error, error),
    };
    this.stop = this.engine.watch(this.info.run, (kind, value) => {
      if (kind !== "error") showError(this.error, null);
      on[kind](value);
    });
  }

  leave() {
    this.stop?.();
    this.stop = null;
    this.slider.stop();
    this.restart();
  }

  /** Forget what was shown: all of it follows again. */
  restart() {
    this.metrics = [];
    this.drawn = 0;  // how many of them the curves show
    this.samples.replaceChildren();
  }

  /** A sentence in place of the view, or the view. */
  say(words) {
    this.state.textContent = words;
    for (const part of [this.progress, this.figures, this.curvesTitle, this.curves, this.halves]) part.hidden = Boolean(words);
  }

  // ---------------------------------------------------------------- what a run writes

  showState(state) {
    const { running, step, max_steps, seconds_left, tokens_per_second, elapsed_seconds, best } = state;
    const done = max_steps && step >= max_steps;
    this.state.textContent = running ? "Training" : done ? "Trained to the end" : "Stopped: gptmini train with --resume goes on from here";
    this.state.classList.toggle("live", running);
    Object.assign(this.progress, { max: max_steps ?? 1, value: max_steps ? step : 0 });
    const figures = [
      ["step", max_steps ? `${number(step)} of ${number(max_steps)}` : number(step)],
      ["time left", running && seconds_left !== null && duration(seconds_left)],
      ["time", elapsed_seconds !== null && duration(elapsed_seconds)],
      ["tokens a second", tokens_per_second !== null && number(tokens_per_second)],
      ["best validation loss", best && `${best.loss.toFixed(3)} at step ${number(best.step)}`],
      ["bits per byte", best && best.bits_per_byte.toFixed(3)],
    ];
    this.figures.replaceChildren(...figures.filter(([, words]) => words).map(([name, words]) => element("div", {}, element("dt", {}, name), element("dd", {}, words))));
    if (state.checkpoints.length && !this.info.checkpoints.length) return this.onCheckpoint();
    this.slider.setSteps(state.checkpoints);
  }

  addSamples(lines) {
    for (const { step, text } of lines) {
      this.samples.prepend(element("li", { class: "sample" }, element("b", {}, `step ${number(step)}`), element("pre", { dir: "auto" }, text.trim() || "(nothing)")));
    }
  }

  /** Draw what the curves lack; nothing while no one sees them, as the run needs the processor more. */
  async draw() {
    if (!this.stop || document.hidden) return;
    try {
      await loadLibrary();
      const run = { name: this.info.run, metrics: this.metrics, text: "", baselines: {} };
      const news = this.metrics.slice(this.drawn);
      // Baselines take seconds to measure, and belong to the report.
      if (!this.curves.children.length) addPanels(this.curves, plots.map((plot) => ({ ...plot, unit: plot.unit.replace("; dashed: baselines", "") })));
      const anew = !this.drawn;
      this.drawn = this.metrics.length;
      if (anew) await drawCurves([run]);
      else if (news.length) await extendCurves(run, news);
    } catch (error) {
      showError(this.curvesError, error);
    }
  }
}
