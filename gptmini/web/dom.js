/** What every view needs: tokens and probabilities as people read them, the floating tip, arrow keys. */

import { element } from "./element.js";

export const byId = (id) => document.getElementById(id);

/** A probability as people read it: 0.5 -> "50 %", 0.00012 -> "0.012 %". */
export function percent(probability) {
  const value = 100 * probability;
  if (value >= 99.95) return "100 %";
  if (value < 0.001) return "< 0.001 %";
  return `${value >= 10 ? value.toFixed(0) : value >= 1 ? value.toFixed(1) : Number(value.toPrecision(2))} %`;
}

/** Whitespace made visible, for a token that stands alone; an odd character at an end stays as it is. */
export function visible(token) {
  if (token.special) return "end of text";
  if (token.bytes) return token.bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
  return token.text.replaceAll(" ", "\u00b7").replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5").replaceAll("\r", "\u240d");
}

/** A row of a ranking: a token, a bar as long as its value (0 to 1), and the value in words. */
export function bar(token, value, words) {
  const fill = element("i", { class: "fill" });
  fill.style.inlineSize = `${Math.max(0, Math.min(1, value)) * 100}%`;
  const name = element("bdi", { class: "name" }, visible(token));
  return [name, element("span", { class: "bar", "aria-hidden": "true" }, fill), element("span", { class: "value" }, words)];
}

/** Show a sentence of an engine where it arose, or nothing. */
export function showError(place, error) {
  place.hidden = !error;
  place.textContent = error ? error.message || String(error) : "";
}

/** Show `content` in the floating tip beside the element or rectangle `at`; no content hides it. */
export function showTip(at, ...content) {
  const tip = byId("tip");
  tip.hidden = !content.length;
  if (!content.length) return;
  tip.replaceChildren(...content);
  place(tip, at);
}

/** Put a floating element below an element (its last line) or rectangle, or above where there is no room. */
export function place(floating, at) {
  const rect = at.getClientRects ? [...at.getClientRects()].at(-1) : at;
  if (!rect) return;
  const room = document.documentElement.clientWidth - floating.offsetWidth - 12;
  const below = rect.bottom + 6 + floating.offsetHeight < innerHeight || rect.top < floating.offsetHeight + 12;
  floating.style.left = `${Math.max(12, Math.min(rect.left, room)) + scrollX}px`;
  floating.style.top = `${(below ? rect.bottom + 6 : rect.top - floating.offsetHeight - 6) + scrollY}px`;
}

/** Give arrow keys, Home and End to a list in which one item at a time is a tab stop. */
export function moveFocus(event, items) {
  const at = items.indexOf(document.activeElement);
  const back = ["ArrowUp", "ArrowLeft"].includes(event.key), on = ["ArrowDown", "ArrowRight"].includes(event.key);
  const to = { Home: 0, End: items.length - 1 }[event.key] ?? (on ? at + 1 : back ? at - 1 : null);
  if (to === null || !items.length) return false;
  event.preventDefault();
  const next = items[Math.max(0, Math.min(items.length - 1, to))];
  for (const item of items) item.tabIndex = item === next ? 0 : -1;
  next.focus();
  return true;
}

/** A function that runs `work` once calls have paused for `milliseconds`. */
export function debounce(work, milliseconds) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...args), milliseconds);
  };
}
