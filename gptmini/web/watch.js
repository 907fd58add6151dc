/** Watch: a run as it trains, from what it writes; and one prompt continued by each checkpoint that it keeps. */

import { addPanels, drawCurves, plots } from "./charts.js";
import { CheckpointSlider } from "./checkpoints.js";
import { byId, showError } from "./dom.js";
import { element } from "./element.js";

const REDRAW_MILLISECONDS = 1000;  // the curves at most this often: the run needs the processor more
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
  constructor(engine) {
    this.engine = engine;
    this.stop = null;
    this.error = element("p", { class: "error", role: "alert", hidden: "" });
    this.curvesError = element("p", { class: "error", hidden: "" });
    this.state = element("p", { class: "state", role: "status" });
    this.progress = element("progress", { max: 1, value: 0, "aria-label": "Steps done" });
    this.figures = element("dl", { class: "figures" });
    this.curves = element("div", { class: "plots" });
    this.samples = element("ol", { class: "timeline" });
    this.slider = new CheckpointSlider(engine);
    const samples = element("section", { class: "view" }, element("h2", {}, "Samples"), element("p", { class: "about" }, "What the run writes as it trains, the newest first; the same seed each time."), this.samples);
    this.halves = element("div", { class: "halves" }, samples, this.slider.root);
    byId("watch").replaceChildren(this.error, this.state, this.progress, this.figures, this.curvesError, this.curves, this.halves);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.stop && this.draw());
    document.addEventListener("visibilitychange", () => this.stop && this.draw());
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
    this.restart();
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
    clearTimeout(this.timer);
  }

  /** Forget what was shown: all of it follows again. */
  restart() {
    this.metrics = [];
    this.samples.replaceChildren();
  }

  /** A sentence in place of the view, or the view. */
  say(words) {
    this.state.textContent = words;
    for (const part of [this.progress, this.figures, this.curves, this.halves]) part.hidden = Boolean(words);
  }

  // ---------------------------------------------------------------- what a run writes

  showState(state) {
    const { running, step, max_steps, seconds_left, tokens_per_second, elapsed_seconds, best } = state;
    const done = step >= max_steps;
    this.state.textContent = running ? "Training" : done ? "Trained to the end" : "Stopped: gptmini train with --resume goes on from here";
    this.state.classList.toggle("live", running);
    Object.assign(this.progress, { max: max_steps, value: step });
    const figures = [
      ["step", `${number(step)} of ${number(max_steps)}`],
      ["time left", running && seconds_left !== null && duration(seconds_left)],
      ["time so far", elapsed_seconds !== null && duration(elapsed_seconds)],
      ["tokens a second", tokens_per_second !== null && number(tokens_per_second)],
      ["best validation loss", best && `${best.loss.toFixed(3)} at step ${number(best.step)}`],
      ["bits per byte", best && best.bits_per_byte.toFixed(3)],
    ];
    this.figures.replaceChildren(...figures.filter(([, words]) => words).map(([name, words]) => element("div", {}, element("dt", {}, name), element("dd", {}, words))));
    this.slider.setSteps(state.checkpoints);
  }

  addSamples(lines) {
    for (const { step, text } of lines) {
      this.samples.prepend(element("li", { class: "sample" }, element("b", {}, `step ${number(step)}`), element("pre", { dir: "auto" }, text.trim() || "(nothing)")));
    }
  }

  /** Draw the curves, at most once in a while and only where they are seen. */
  draw() {
    if (this.timer || !this.stop || document.hidden) return;
    this.timer = setTimeout(async () => {
      try {
        await loadLibrary();
        if (!this.curves.children.length) addPanels(this.curves, plots);
        await drawCurves([{ name: this.info.run, metrics: this.metrics, text: "", baselines: {} }]);
      } catch (error) {
        showError(this.curvesError, error);
      }
      this.timer = null;
    }, this.drawn ? REDRAW_MILLISECONDS : 0);
    this.drawn = true;
  }
}
