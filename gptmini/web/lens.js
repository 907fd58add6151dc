/** The logit lens: what each layer would already say after each token, as a table of positions by layers. */

import { bar, percent, showTip, visible } from "./dom.js";
import { element } from "./element.js";

export class LensView {
  /** onChoose(position): a person chose a row. */
  constructor(onChoose) {
    this.onChoose = onChoose;
    this.table = element("table", { role: "grid", "aria-label": "The likeliest next token after each position, layer by layer; arrow keys move" });
    this.root = element("div", {}, element("div", { class: "scale" }, element("span", {}, "Probability:"), element("span", { class: "ramp accent" }, element("i"), ...["0 %", "50 %", "100 %"].map((words) => element("span", {}, words))), element("span", {}, "Bold: the token that does come next.")), element("div", { class: "scroll panel lens", tabindex: -1 }, this.table));
    const find = (event) => event.target.closest("[role=gridcell]");
    for (const kind of ["pointerover", "focusin"]) this.table.addEventListener(kind, (event) => (find(event) ? this.point(find(event)) : showTip(null)));
    for (const kind of ["pointerleave", "focusout"]) this.table.addEventListener(kind, () => showTip(null));
    this.table.addEventListener("click", (event) => event.target.closest("tbody tr") && this.onChoose(this.rows.indexOf(event.target.closest("tr"))));
    this.table.addEventListener("keydown", (event) => this.move(event));
  }

  /** Show the lens of what `inspect` found. */
  show({ tokens, lens }, info) {
    this.lens = lens;
    const titles = ["after", "embedding", ...Array.from({ length: info.n_layer }, (_, i) => `layer ${i + 1}`), "comes next"];
    const head = element("tr", { role: "row" }, ...titles.map((title) => element("th", { role: "columnheader", scope: "col" }, title)));
    this.rows = tokens.map((token, position) => {
      const next = tokens[position + 1];
      const cells = lens.map((layer, i) => this.cell(layer[position][0], next, `${titles[i + 1]}, after ${visible(token)}`));
      return element("tr", { role: "row" },
        element("th", { role: "rowheader", scope: "row" }, element("bdi", {}, visible(token))),
        ...cells,
        element("td", { class: "next" }, element("bdi", {}, next ? visible(next) : "")));
    });
    this.rows[0].cells[1].tabIndex = 0;
    this.table.replaceChildren(element("thead", {}, head), element("tbody", {}, ...this.rows));
  }

  cell([token, probability], next, where) {
    const made = element("td", { role: "gridcell", tabindex: -1, "aria-label": `${where}: ${visible(token)}, ${percent(probability)}` }, element("bdi", {}, visible(token)));
    made.style.setProperty("--s", probability.toFixed(3));
    made.classList.toggle("hit", next?.id === token.id);
    return made;
  }

  /** Show the five likeliest tokens of a cell. */
  point(cell) {
    const top = this.lens[cell.cellIndex - 1][this.rows.indexOf(cell.parentElement)];
    showTip(cell, ...top.map(([token, probability]) => element("div", { class: "ranked" }, ...bar(token, probability, percent(probability)))));
  }

  /** Arrow keys walk the cells, Enter chooses the row. */
  move(event) {
    const cell = event.target.closest("[role=gridcell]");
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    if (cell && event.key === "Enter") this.onChoose(this.rows.indexOf(cell.parentElement));
    if (!cell || (!down && !right)) return;
    event.preventDefault();
    const to = this.rows[this.rows.indexOf(cell.parentElement) + down]?.cells[cell.cellIndex + right];
    if (to?.role !== "gridcell") return;
    [cell.tabIndex, to.tabIndex] = [-1, 0];
    to.focus();
  }

  /** Mark the row of a position. */
  mark(position) {
    this.rows.forEach((row, i) => row.classList.toggle("chosen", i === position));
  }
}
