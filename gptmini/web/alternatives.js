/** The list that opens at a token: the likeliest twenty that could stand there, to take another one. */

import { bar, byId, moveFocus, percent, place, showError, visible } from "./dom.js";
import { element } from "./element.js";

let close = () => {};

/**
 * Open the list beside `span`, for the positions of its group of tokens.
 * steps: [{token, probability}] of the group; topOf(i): a promise of the likeliest tokens in the place of the i-th;
 * onTake(i, token, probability): another token was taken there.
 */
export function openAlternatives(span, steps, topOf, onTake) {
  close();
  const panel = byId("alternatives"), body = element("div");
  const outside = (event) => !panel.contains(event.target) && close(false);
  close = (back = true) => {
    panel.hidden = true;
    panel.onkeydown = null;
    span.classList.remove("chosen");
    document.removeEventListener("pointerdown", outside);
    if (back) span.focus();
    close = () => {};
  };
  document.addEventListener("pointerdown", outside);
  span.classList.add("chosen");
  panel.onkeydown = (event) => {
    if (event.key === "Tab") close();
    if (event.key !== "Escape") return;
    event.stopPropagation();  // Escape closes the list, and does not also stop the model
    close();
  };
  panel.replaceChildren(...(steps.length > 1 ? [members(steps, (i) => fill(i))] : []), body);
  panel.hidden = false;

  const fill = async (i) => {
    const { token, probability } = steps[i];
    const heading = element("p", {}, element("bdi", { class: "name" }, visible(token)), probability === null ? " stands here." : ` (${percent(probability)}) stands here.`, " Take another:");
    const list = element("ul", { role: "listbox", "aria-label": "The likeliest tokens here" });
    body.replaceChildren(heading, list);
    place(panel, span);
    let top;
    try {
      top = await topOf(i);
    } catch (error) {
      const message = element("p", { class: "error" });
      showError(message, error);
      return body.append(message);
    }
    if (panel.hidden || body.lastChild !== list) return;
    list.append(...top.map(([other, p]) => option(other, p, other.id === token.id, () => (close(false), onTake(i, other, p)))));
    place(panel, span);
    const rows = [...list.children];
    const first = rows.find((row) => row.ariaSelected === "true") ?? rows[0];
    if (first) (first.tabIndex = 0), first.focus({ preventScroll: true });
    list.onkeydown = (event) => {
      if (moveFocus(event, rows)) return;
      if (event.key === "Enter" || event.key === " ") event.preventDefault(), document.activeElement.click();
    };
  };
  fill(0);
}

/** Close the list where it is open. */
export const closeAlternatives = () => close(false);

function option(token, probability, selected, take) {
  const row = element("li", { role: "option", tabindex: -1, "aria-selected": String(selected), class: "ranked" }, ...bar(token, probability, percent(probability)));
  row.onclick = take;
  return row;
}

/** Where several tokens make one character: a button for each of them. */
function members(steps, onPick) {
  const buttons = steps.map(({ token }, i) => {
    const button = element("button", { type: "button", "aria-pressed": String(i === 0) }, visible(token));
    button.onclick = () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      onPick(i);
    };
    return button;
  });
  return element("div", { class: "members" }, element("span", {}, `${steps.length} tokens make this character:`), ...buttons);
}
