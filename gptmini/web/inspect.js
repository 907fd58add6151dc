/** Look inside: what the model computes for the text in the box, at a token that the person chooses. */

import { AttentionView } from "./attention.js";
import { bar, byId, percent, showError, showTip, visible } from "./dom.js";
import { element } from "./element.js";
import { LensView } from "./lens.js";
import { TokenView } from "./tokens.js";

const BITS_AT_FULL_SHADE = 10;

/** A view's heading: its title, a sentence on what it shows, and the line of the model's code that computes it. */
function section(id, title, sentence, ...children) {
  const about = element("p", { class: "about" }, `${sentence} `, element("code", { class: "line" }));
  return element("section", { id, class: "view" }, element("h2", {}, title), about, ...children);
}

export class LookInside {
  constructor(engine, play) {
    this.engine = engine;
    this.play = play;
    this.asked = 0;
    this.shown = null;  // the model and ids in view
    this.build();
  }

  build() {
    this.error = element("p", { class: "error", role: "alert", hidden: "" });
    this.note = element("p", { class: "note" });
    const text = element("div", { class: "tokens panel", dir: "auto", role: "group", "aria-label": "The text, token by token. Arrow keys move; Enter chooses a token for the views below." });
    const ramp = element("div", { class: "scale" }, element("span", {}, "Surprise:"), element("span", { class: "ramp" }, element("i"), ...["0", "3", "7", "10 bits"].map((words) => element("span", {}, words))));
    this.average = element("p", { class: "soft" });
    this.view = new TokenView(text, {
      onChoose: (group) => this.choose(group.end - 1),
      onPoint: (group, span) => this.point(group, span),
    });
    this.attention = new AttentionView((position) => this.choose(position));
    this.lens = new LensView((position) => this.choose(position));
    this.nearest = element("ol", { class: "ranking" });
    this.nearestTitle = element("h3");
    this.views = element("div", { class: "views" },
      section("surprise", "Surprise", "How many bits of surprise, -log2 p, each token was to the model that had read what stands before it. Choose a token to follow it through the views below.", ramp, text, this.average),
      section("attention", "Attention", "How much each token takes from each token before it, in every head of every layer. Each small map is one head: a row is a token that reads, a column a token that is read, and a row sums to 1.", this.attention.root),
      section("lens", "What each layer would already say", "The logit lens: the residual stream after each block, sent through the final LayerNorm and the output weights as if the model ended there. The last layer is what the model does say.", this.lens.root),
      section("neighbors", "Nearest tokens", "The tokens whose embedding vectors point most nearly the same way (cosine similarity). Training brought together what stands in similar places.", this.nearestTitle, this.nearest),
    );
    byId("look").replaceChildren(this.error, this.note, this.views);
  }

  /** The view was opened: compute it, unless the same text is in view. */
  async enter() {
    const asked = ++this.asked;
    const info = this.play.model;
    try {
      const ids = (await this.play.tokens()).map((token) => token.id);
      const key = JSON.stringify([info.id, ids]);
      if (asked !== this.asked || key === this.shown) return;
      this.views.hidden = true;
      this.say(ids.length ? "Computing\u2026" : "There is no text to look into yet: write some in Play, or let the model write.");
      showError(this.error, null);
      if (!ids.length) return;
      const found = await this.engine.inspect(info.id, ids);
      if (asked !== this.asked) return;
      const cut = ids.length > found.tokens.length;
      this.say(cut ? `The last ${found.tokens.length} of ${ids.length} tokens; the model reads them as if the text began there.` : "");
      await this.show(info, found);
      this.shown = key;
    } catch (error) {
      this.say("");
      if (asked === this.asked) showError(this.error, error);
    }
  }

  say(words) {
    this.note.textContent = words;
    this.note.hidden = !words;
  }

  async show(info, found) {
    this.info = info;
    this.found = found;
    this.views.hidden = false;
    const { tokens, surprisal } = found;
    this.view.show(tokens);
    this.view.shade(surprisal.map((bits) => bits === null ? null : Math.min(1, bits / BITS_AT_FULL_SHADE)));
    this.view.label((group) => this.words(group));
    const known = surprisal.filter((bits) => bits !== null);
    const mean = known.reduce((sum, bits) => sum + bits, 0) / known.length;
    this.average.textContent = known.length ? `On average ${mean.toFixed(2)} bits per token: as uncertain as a choice among ${(2 ** mean).toFixed(1)} equally likely tokens.` : "One token has nothing before it that could foretell it.";
    this.names(info);
    this.lens.show(found, info);
    await this.attention.show(found, info);
    this.choose(tokens.length - 1);
  }

  /** Under each view, the line of model.py that computes it. */
  names({ lines = {} }) {
    for (const [id, key] of [["surprise", "loss"], ["attention", "attention"], ["lens", "lens"], ["neighbors", "neighbors"]]) {
      byId(id).querySelector(".line").textContent = lines[key] ? `model.py, line ${lines[key]}` : "";
    }
  }

  words(group) {
    const bits = this.found.surprisal.slice(group.start, group.end);
    if (bits.includes(null)) return "";
    const sum = bits.reduce((total, one) => total + one, 0);
    return `${sum.toFixed(2)} bits, ${percent(2 ** -sum)}`;
  }

  point(group, span) {
    if (group && this.words(group)) showTip(span, this.words(group));
    else showTip(null);
  }

  /** Follow the token at a position through all views. */
  async choose(position) {
    this.view.mark(position);
    this.attention.choose(position);
    this.lens.mark(position);
    await this.showNearest(this.found.tokens[position]);
  }

  async showNearest(token) {
    const asked = (this.nearestAsked = token);
    try {
      const found = await this.engine.neighbors(this.info.id, token.id);
      if (asked !== this.nearestAsked) return;
      this.nearestTitle.replaceChildren("Nearest to ", element("bdi", { class: "name" }, visible(token)));
      this.nearest.replaceChildren(...found.map(([other, cosine]) => {
        const button = element("button", { type: "button", class: "ranked" }, ...bar(other, cosine, cosine.toFixed(2)));
        button.onclick = () => this.showNearest(other);
        return element("li", {}, button);
      }));
    } catch (error) {
      if (asked === this.nearestAsked) showError(this.error, error);
    }
  }
}
