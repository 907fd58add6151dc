/** Play: a text that the model continues in place, token by token, and the branches not taken. */

import { closeAlternatives, openAlternatives } from "./alternatives.js";
import { commonLength, drawBranches, forksOf } from "./branches.js";
import { byId, debounce, percent, showError, showTip, visible } from "./dom.js";
import { element } from "./element.js";
import { listenToSettings, readSettings, settingsAreValid } from "./settings.js";
import { TokenView, textOf } from "./tokens.js";

const BITS_AT_FULL_SHADE = 10;  // a probability of about 0.1 %

/** How strongly a token is shaded: 0 where it was certain, 1 from 10 bits of surprise on; null where it was typed. */
export const shadeOf = (probability) => (probability === null ? null : Math.min(1, -Math.log2(probability) / BITS_AT_FULL_SHADE));

export class Play {
  constructor(engine) {
    this.engine = engine;
    this.model = null;
    this.branches = [];
    this.current = null;  // the branch in view
    this.editing = true;  // the text is in the text area, not yet in tokens
    this.running = null;  // the AbortController of a generation
    this.asked = new AbortController();  // of what is asked about a text while it is written
    this.prompt = byId("prompt");
    this.view = new TokenView(byId("text"), {
      onChoose: (group, span) => this.showAlternatives(group, span),
      onPoint: (group, span) => this.showProbability(group, span),
    });
    this.listen();
  }

  listen() {
    byId("generate").onclick = () => (this.running ? this.stop() : this.start());
    byId("again").onclick = () => this.again();
    byId("edit").onclick = () => this.edit(this.text());
    const typed = debounce(() => this.preview(), 60);
    this.prompt.addEventListener("input", () => {
      this.fit();
      this.asked.abort();
      byId("hint").ariaBusy = "true";  // it is of the text as it was before
      typed();
    });
    byId("text").addEventListener("click", (event) => event.target === event.currentTarget && this.edit(this.text()));
    byId("text").addEventListener("keydown", (event) => this.typeOn(event));
    document.addEventListener("keydown", (event) => {
      if (byId("play").hidden) return;
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.preventDefault(), this.start();
      if (event.key === "Escape") this.stop();
    });
    listenToSettings();
  }

  /** Take up another model; the text stays, unless it is the line that the model before began with. */
  setModel(info) {
    this.stop();
    const text = this.text();
    const keeps = text && text !== this.model?.first_line;
    this.model = info;
    this.branches = [];
    this.current = null;
    byId("generate").disabled = false;
    this.edit(keeps ? text : info.first_line, false);
  }

  /** The text in the box. */
  text() {
    return this.editing ? this.prompt.value : textOf(this.current.steps.map((step) => step.token));
  }

  /** The tokens of the text in the box. */
  async tokens() {
    return this.editing ? this.engine.tokenize(this.model.id, this.text()) : this.current.steps.map((step) => step.token);
  }

  // ---------------------------------------------------------------- writing

  /** Go back to the text area, with the cursor at the end. */
  edit(text, focus = true) {
    this.stop();
    closeAlternatives();
    this.editing = true;
    this.prompt.value = text;
    this.draw();
    this.fit();
    if (focus) {
      this.prompt.focus();
      this.prompt.setSelectionRange(text.length, text.length);
    }
    this.preview();
  }

  /** A letter typed while the tokens are in view goes to the end of the text. */
  typeOn(event) {
    if (event.key.length !== 1 || event.key === " " || event.ctrlKey || event.metaKey || event.altKey) return;
    this.edit(this.text());
  }

  /** Let the text area be as high as its text. */
  fit() {
    this.prompt.style.blockSize = "auto";
    this.prompt.style.blockSize = `${this.prompt.scrollHeight}px`;
  }

  /** While a person writes: how many tokens it is, and what would come next. */
  async preview() {
    this.asked.abort();
    if (!this.editing || this.running) return;
    const { signal } = (this.asked = new AbortController());
    const late = () => signal.aborted || !this.editing;
    try {
      const tokens = await this.engine.tokenize(this.model.id, this.prompt.value, signal);
      if (late()) return;
      byId("status").textContent = countOf(tokens.length, this.model.context_length);
      showError(byId("play-error"), null);
      const { top } = await this.engine.next(this.model.id, tokens.map((token) => token.id), signal);
      if (!late()) this.showNext(top);
    } catch (error) {
      if (late()) return;
      byId("hint").replaceChildren();
      showError(byId("play-error"), error);
    }
  }

  showNext(top) {
    const shown = top.filter(([token]) => !token.special && !token.bytes).slice(0, 8);
    const chips = shown.map(([token, probability]) => {
      const chip = element("button", { type: "button", class: "chip" }, element("bdi", {}, visible(token)), element("span", {}, percent(probability)));
      chip.onclick = () => this.edit(this.prompt.value + token.text);
      return chip;
    });
    byId("hint").ariaBusy = "false";
    byId("hint").replaceChildren(element("span", {}, this.prompt.value ? "Likely next:" : "Likely first:"), ...chips);
  }

  // ---------------------------------------------------------------- generating

  /** Continue the text in the box from its end. */
  async start() {
    if (this.running || !this.model || !settingsAreValid()) return;
    const { signal } = (this.running = new AbortController());
    this.asked.abort();
    try {
      const text = this.text(), steps = this.current?.steps;
      // Written on where it ended; but a text that is edited has no end of text any more.
      const known = steps && !(this.editing && steps.at(-1)?.token.special) && textOf(steps.map((step) => step.token)) === text;
      const tokens = known ? [] : await this.engine.tokenize(this.model.id, text);
      if (signal.aborted) return;
      if (!known) this.begin(tokens.map((token) => ({ token, probability: null, top: null })));
      if (this.editing) this.showTokens();
      await this.run();
    } catch (error) {
      this.running = null;
      showError(byId("play-error"), error);
    }
  }

  /** A new branch from these steps on, in view. */
  begin(steps) {
    this.current = { steps: steps.slice(), from: steps.length };
    this.branches.push(this.current);
  }

  /** Another continuation from where the last one began. */
  async again() {
    if (!settingsAreValid()) return;
    this.stop();
    this.begin(this.current.steps.slice(0, this.current.from));
    this.showTokens();
    await this.run();
  }

  /** Take another token at a position, and go on from there. */
  async take(position, token, probability) {
    this.stop();
    const top = this.current.steps[position].top;
    this.begin([...this.current.steps.slice(0, position), { token, probability, top }]);
    this.showTokens();
    if (token.special) this.finish();
    else await this.run();
  }

  /** Let the model write at the end of the branch in view. */
  async run() {
    const branch = this.current, controller = (this.running = new AbortController()), options = readSettings();
    Object.assign(branch, { from: branch.steps.length, began: performance.now(), seed: options.seed });
    showError(byId("play-error"), null);
    this.draw();
    try {
      const ids = branch.steps.map((step) => step.token.id);
      for await (const step of this.engine.generate(this.model.id, ids, { ...options, signal: controller.signal })) {
        if (controller.signal.aborted) return;
        branch.steps.push(step);
        this.showStep(step);
      }
    } catch (error) {
      if (controller.signal.aborted) return;
      showError(byId("play-error"), error);
    }
    if (this.running === controller) this.finish();  // else it was stopped
  }

  stop() {
    this.running?.abort();
    if (this.running && !this.editing) this.finish();
    this.running = null;
  }

  /** After a generation: what was written, and the branches but those that it repeats. */
  finish() {
    const { steps, from, began, seed } = this.current, count = steps.length - from;
    const repeated = (other) => other !== this.current && commonLength(other, this.current) === other.steps.length;
    this.branches = this.branches.filter((other) => !repeated(other));
    this.running = null;
    this.draw();
    const speed = Math.round((1000 * count) / (performance.now() - began));
    const ended = steps.at(-1)?.token.special ? "; the text ends here" : "";
    byId("status").textContent = count > 1 ? `${count} tokens, ${speed} a second, seed ${seed}${ended}` : "";
  }

  // ---------------------------------------------------------------- showing

  showTokens() {
    closeAlternatives();
    this.editing = false;
    this.view.show(this.current.steps.map((step) => step.token));
    this.view.shade(this.current.steps.map((step) => shadeOf(step.probability)));
    this.view.label((group) => this.words(group));
    this.draw();
  }

  showStep(step) {
    const box = byId("text"), follows = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    const from = this.view.tokens.length;
    this.view.add(step.token);
    this.view.shade(this.current.steps.map((one) => shadeOf(one.probability)), from);
    this.view.label((group) => this.words(group), from);
    if (follows) box.scrollTop = box.scrollHeight;
  }

  /** What is said of a group of tokens: how likely it was, all its tokens together. */
  words(group) {
    const probabilities = this.current.steps.slice(group.start, group.end).map((step) => step.probability);
    return probabilities.includes(null) ? "" : percent(probabilities.reduce((product, p) => product * p, 1));
  }

  showProbability(group, span) {
    const words = group && this.words(group);
    if (words && byId("alternatives").hidden) showTip(span, words);
    else showTip(null);
  }

  showAlternatives(group, span) {
    showTip(null);
    const { steps } = this.current;
    const topOf = async (i) => {
      const position = group.start + i;
      const before = steps.slice(0, position).map((step) => step.token.id);
      steps[position].top ??= (await this.engine.next(this.model.id, before)).top;
      return steps[position].top;
    };
    openAlternatives(span, steps.slice(group.start, group.end), topOf, (i, token, probability) => this.take(group.start + i, token, probability));
  }

  /** Buttons, legend and branches as they fit what is going on. */
  draw() {
    const { editing, running } = this;
    this.prompt.hidden = !editing;
    byId("text").hidden = editing;
    byId("text").classList.toggle("running", Boolean(running));
    byId("hint").hidden = !editing;
    byId("legend").hidden = editing;
    byId("generate").textContent = running ? "Stop" : editing ? "Generate" : "Continue";
    byId("generate").title = running ? "Escape" : "Ctrl + Enter";
    byId("again").hidden = byId("edit").hidden = editing;
    if (running) byId("status").textContent = "";
    if (!editing) {
      const forks = forksOf(this.current, this.branches);
      this.view.groups.forEach((group, i) => this.view.spans[i].classList.toggle("fork", forks.has(group.start)));
    }
    byId("branches").hidden = this.branches.length < 2;
    drawBranches(byId("branches").querySelector("ul"), this.branches, editing ? null : this.current, (branch) => this.switchTo(branch));
  }

  switchTo(branch) {
    this.stop();
    this.current = branch;
    byId("status").textContent = "";
    this.showTokens();
    byId("branches").querySelector("[aria-current]")?.focus();
  }
}

/** "12 tokens", and where the text is longer than the context, what of it the model reads. */
function countOf(count, context_length) {
  const tokens = count === 1 ? "1 token" : `${count} tokens`;
  return count > context_length ? `${tokens}; the model reads at most the last ${context_length}` : tokens;
}
