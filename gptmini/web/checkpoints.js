/** One prompt continued by each checkpoint that a run keeps, with the same seed: only the weights differ. */

import { debounce, percent, showError, showTip } from "./dom.js";
import { element } from "./element.js";
import { shadeOf } from "./play.js";
import { TokenView } from "./tokens.js";

const OPTIONS = { max_new_tokens: 80, temperature: 0.8, top_k: null, top_p: null, seed: 1 };

export class CheckpointSlider {
  constructor(engine) {
    this.engine = engine;
    this.prompt = element("input", { type: "text", dir: "auto", "aria-label": "Prompt for the checkpoints", maxlength: 2000 });
    this.slider = element("input", { type: "range", min: 0, max: 0, step: 1, value: 0, "aria-label": "Checkpoint" });
    this.which = element("output", {});
    this.error = element("p", { class: "error", role: "alert", hidden: "" });
    const text = element("div", { class: "tokens panel", dir: "auto", role: "group", "aria-label": "The prompt, continued by this checkpoint" });
    this.view = new TokenView(text, { onPoint: (group, span) => this.point(group, span) });
    this.root = element("section", { class: "view checkpoints" },
      element("h2", {}, "Through its checkpoints"),
      element("p", { class: "about" }, "The same prompt and seed, continued by each checkpoint that the run keeps."),
      this.prompt, element("p", { class: "which" }, this.which), this.slider, this.error, text);
    const changed = debounce(() => this.show(), 200);
    this.slider.oninput = () => (this.name(), changed());
    this.prompt.oninput = () => (this.texts.clear(), changed());
  }

  setModel(info) {
    this.info = info;
    this.steps = [];
    this.texts = new Map();  // step -> its steps of generation
    this.prompt.value = info.first_line;
    this.view.clear();
    this.setSteps(info.checkpoints);
  }

  /** The run keeps these checkpoints now; the slider stays at the newest where it stood there. */
  setSteps(steps) {
    if (String(steps) === String(this.steps)) return;
    const newest = Number(this.slider.value) >= this.steps.length - 1, step = this.steps[this.slider.value];
    this.steps = steps;
    this.slider.max = Math.max(0, steps.length - 1);
    this.slider.value = newest ? steps.length - 1 : Math.max(0, steps.indexOf(step));
    this.slider.disabled = steps.length < 2;
    this.name();
    if (steps.length && !this.root.closest("[hidden]")) this.show();
  }

  stop() {
    this.controller?.abort();
  }

  name() {
    const step = this.steps[this.slider.value];
    this.which.textContent = step === undefined ? "No checkpoint is kept yet." : `Step ${step.toLocaleString("en")}`;
    this.slider.setAttribute("aria-valuetext", this.which.textContent);
  }

  /** Continue the prompt by the checkpoint that the slider points at; what was seen is shown at once. */
  async show() {
    this.stop();
    const controller = (this.controller = new AbortController());
    const step = this.steps[this.slider.value], model = `${this.info.id}@${step}`;
    if (step === undefined) return;
    const late = () => controller.signal.aborted;
    try {
      if (!this.texts.has(step)) {
        const prompt = await this.engine.tokenize(model, this.prompt.value);
        if (late()) return;
        const found = prompt.map((token) => ({ token, probability: null }));
        this.draw(found);
        const ids = prompt.map((token) => token.id);
        for await (const one of this.engine.generate(model, ids, { ...OPTIONS, signal: controller.signal })) {
          if (late()) return;
          found.push(one);
          this.draw(found);
        }
        if (late()) return;
        this.texts.set(step, found);
      }
      this.draw(this.texts.get(step));
      showError(this.error, null);
    } catch (error) {
      if (!late()) showError(this.error, error);
    }
  }

  draw(steps) {
    const same = steps.length > this.view.tokens.length && this.shown === steps;
    if (!same) this.view.clear();
    this.shown = steps;
    for (const { token } of steps.slice(this.view.tokens.length)) this.view.add(token);
    this.view.shade(steps.map((one) => shadeOf(one.probability)));
    this.view.label((group) => this.words(group));
  }

  words(group) {
    const probabilities = this.shown.slice(group.start, group.end).map((one) => one.probability);
    return probabilities.includes(null) ? "" : percent(probabilities.reduce((product, p) => product * p, 1));
  }

  point(group, span) {
    if (group && this.words(group)) showTip(span, this.words(group));
    else showTip(null);
  }
}
