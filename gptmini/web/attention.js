/** Attention: a small map for every head of every layer, and one of them large, from token to token. */

import { percent, showTip, visible } from "./dom.js";
import { element } from "./element.js";
import { TokenView } from "./tokens.js";

const LARGE = 384;  // CSS pixels of the large map's side
const ALL = 520;    // and of the width of all small maps, at most
const CELL = 72;    // of a small map's side, at most
const LABELS = 22;  // for the numbers of layers and heads
const GAP = 3;

/** The shade of a weight: its square root, so that weights of a few percent are seen at all. */
const shadeOf = (weight) => Math.sqrt(weight);

/** The red, green and blue of a custom property of looks.css, which is written #rrggbb. */
function color(name) {
  const value = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((at) => parseInt(value.slice(at, at + 2), 16));
}

/** A (T, T) map as a picture: from the panel's colour to the accent; what a token cannot read stays clear. */
function picture(T, weightAt) {
  const [low, high] = [color("--panel"), color("--accent")];
  const image = new ImageData(T, T);
  for (let t = 0; t < T; t++) {
    for (let s = 0; s <= t; s++) {
      const shade = shadeOf(weightAt(t * T + s)), at = 4 * (t * T + s);
      for (let c = 0; c < 3; c++) image.data[at + c] = low[c] + shade * (high[c] - low[c]);
      image.data[at + 3] = 255;
    }
  }
  const canvas = element("canvas", { width: T, height: T });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Size a canvas for the screen's pixels; returns its context, to be drawn in CSS pixels. */
function prepare(canvas, width, height) {
  const scale = devicePixelRatio || 1;
  Object.assign(canvas, { width: width * scale, height: height * scale });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return context;
}

export class AttentionView {
  /** onChoose(position): a person chose a token in the large map or in the text. */
  constructor(onChoose) {
    this.onChoose = onChoose;
    this.at = [0, 0];  // the layer and head that are shown large
    this.grid = element("canvas");
    this.frame = element("div", { class: "frame" });
    this.gridBox = element("div", { class: "maps", tabindex: 0, role: "group", "aria-label": "Maps of all layers and heads; arrow keys choose one" }, this.grid, this.frame);
    this.layer = element("select", { "aria-label": "Layer" });
    this.head = element("select", { "aria-label": "Head" });
    this.reading = element("p", { class: "soft" });
    this.large = element("canvas", { class: "large", role: "img" });
    const text = element("div", { class: "tokens accent", dir: "auto", role: "group", "aria-label": "The text; at each token it shows what the token reads" });
    this.view = new TokenView(text, {
      onChoose: (group) => this.onChoose(group.end - 1),
      onPoint: (group) => this.showRow(group ? group.end - 1 : this.position),
    });
    this.root = element("div", { class: "attention" },
      this.gridBox,
      element("div", { class: "one" }, element("p", { class: "which" }, "Layer ", this.layer, " head ", this.head), this.large),
      element("div", { class: "reading" }, this.reading, text),
    );
    this.listen();
  }

  listen() {
    this.layer.onchange = this.head.onchange = () => this.open(Number(this.layer.value), Number(this.head.value));
    this.grid.onclick = (event) => {
      const layer = Math.floor((event.offsetY - LABELS) / (this.cell + GAP)), head = Math.floor((event.offsetX - LABELS) / (this.cell + GAP));
      if (layer >= 0 && head >= 0 && layer < this.info.n_layer && head < this.info.n_head) this.open(layer, head);
    };
    this.gridBox.onkeydown = (event) => {
      const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
      if (!down && !right) return;
      event.preventDefault();
      const within = (value, count) => Math.max(0, Math.min(count - 1, value));
      this.open(within(this.at[0] + down, this.info.n_layer), within(this.at[1] + right, this.info.n_head));
    };
    this.large.onpointermove = (event) => this.point(event);
    this.large.onpointerleave = () => (showTip(null), this.showRow(this.position));
    this.large.onclick = (event) => this.onChoose(this.cellAt(event)[0]);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.info && this.redraw());
    new ResizeObserver(() => this.weights && this.root.clientWidth !== this.width && this.redraw()).observe(this.root);
  }

  /** Show the attention of what `inspect` found. */
  async show(found, info) {
    Object.assign(this, { found, info, weights: null, position: found.tokens.length - 1 });
    this.maps = await found.attention_maps();  // (n_layer, n_head, T, T)
    for (const [select, count] of [[this.layer, info.n_layer], [this.head, info.n_head]]) {
      select.replaceChildren(...Array.from({ length: count }, (_, i) => element("option", { value: i }, String(i + 1))));
    }
    this.view.show(found.tokens);
    this.at = [Math.min(this.at[0], info.n_layer - 1), Math.min(this.at[1], info.n_head - 1)];
    this.drawGrid();
    await this.open(...this.at);
  }

  /** Show one head large. */
  async open(layer, head) {
    this.at = [layer, head];
    [this.layer.value, this.head.value] = this.at;
    this.frameOpen();
    const weights = await this.found.attention(layer, head);  // (T, T)
    if (this.at[0] !== layer || this.at[1] !== head) return;  // another was opened meanwhile
    this.weights = weights;
    this.drawLarge();
    this.showRow(this.position);
  }

  redraw() {
    this.drawGrid();
    if (this.weights) this.drawLarge();
  }

  drawGrid() {
    const { n_layer, n_head } = this.info, T = this.found.tokens.length;
    this.width = this.root.clientWidth;
    this.cell = Math.max(12, Math.min(CELL, Math.floor((Math.min(ALL, this.width - 4) - LABELS) / n_head) - GAP));
    const context = prepare(this.grid, LABELS + n_head * (this.cell + GAP), LABELS + n_layer * (this.cell + GAP));
    const style = getComputedStyle(document.documentElement), soft = style.getPropertyValue("--soft"), ground = style.getPropertyValue("--grid");
    context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.imageSmoothingEnabled = T > this.cell;
    for (let layer = 0; layer < n_layer; layer++) {
      context.fillStyle = soft;
      context.fillText(layer + 1, LABELS / 2 - 2, this.corner(layer) + this.cell / 2);
      for (let head = 0; head < n_head; head++) {
        const x = this.corner(head), y = this.corner(layer), start = (layer * n_head + head) * T * T;
        context.fillStyle = soft;
        if (layer === 0) context.fillText(head + 1, x + this.cell / 2, LABELS / 2);
        context.fillStyle = ground;
        context.fillRect(x, y, this.cell, this.cell);
        context.drawImage(picture(T, (i) => this.maps[start + i] / 255), x, y, this.cell, this.cell);
      }
    }
    this.frameOpen();
  }

  /** Where the map of a layer begins from above, or of a head from the left. */
  corner(number) {
    return LABELS + number * (this.cell + GAP);
  }

  /** Frame the small map of the head that is shown large. */
  frameOpen() {
    const [layer, head] = this.at;
    Object.assign(this.frame.style, { top: `${this.corner(layer)}px`, left: `${this.corner(head)}px`, width: `${this.cell}px`, height: `${this.cell}px` });
    const top = this.corner(layer), box = this.gridBox;  // keep it in sight where the box scrolls
    if (top < box.scrollTop || top + this.cell > box.scrollTop + box.clientHeight) box.scrollTop = top - box.clientHeight / 2;
  }

  drawLarge(row = this.position) {
    const T = this.found.tokens.length, side = Math.min(LARGE, this.root.clientWidth);
    const context = prepare(this.large, side, side);
    context.imageSmoothingEnabled = false;
    context.drawImage(picture(T, (i) => this.weights[i]), 0, 0, side, side);
    const style = getComputedStyle(document.documentElement);
    context.strokeStyle = style.getPropertyValue("--heat");
    context.lineWidth = 1.5;
    context.strokeRect(0.75, (row * side) / T, ((row + 1) * side) / T - 0.75, side / T);
    this.large.setAttribute("aria-label", `Attention of layer ${this.at[0] + 1}, head ${this.at[1] + 1}: ${T} by ${T} weights; the text below shows them row by row`);
  }

  /** Follow the token at a position. */
  choose(position) {
    this.position = position;
    if (this.weights) this.showRow(position);
  }

  /** Shade the text by what the token at a position reads. */
  showRow(position) {
    if (!this.weights) return;
    const T = this.found.tokens.length;
    const row = Array.from(this.weights.subarray(position * T, position * T + T));
    this.view.shade(row.map((weight, s) => (s <= position ? shadeOf(weight) : null)));
    this.view.mark(position);
    this.view.label((group) => (group.start <= position ? percent(row.slice(group.start, group.end).reduce((sum, one) => sum + one, 0)) : ""));
    const most = row.indexOf(Math.max(...row));
    this.reading.replaceChildren(this.name(position), " reads most from ", this.name(most), `, ${percent(row[most])}`);
    this.drawLarge(position);
  }

  name(position) {
    return element("bdi", { class: "name" }, visible(this.found.tokens[position]));
  }

  cellAt(event) {
    const T = this.found.tokens.length, side = this.large.clientWidth;
    return [event.offsetY, event.offsetX].map((pixels) => Math.max(0, Math.min(T - 1, Math.floor((pixels * T) / side))));
  }

  point(event) {
    if (!this.weights) return;
    const [t, s] = this.cellAt(event), T = this.found.tokens.length;
    if (s > t) return showTip(null);  // a token cannot read what comes after it
    this.showRow(t);
    const rect = new DOMRect(event.clientX, event.clientY - 8, 16, 16);
    showTip(rect, this.name(t), " reads ", this.name(s), `: ${percent(this.weights[t * T + s])}`);
  }
}
