/** A text as its tokens: joined to characters where bytes were split, shaded, walked by pointer and keys. */

import { moveFocus, visible } from "./dom.js";
import { element } from "./element.js";

/**
 * Add a token to groups of tokens that make whole characters: {start, end, text, open}.
 * Most tokens are a group of their own; the four bytes of an emoji are one group of up to four.
 */
export function addToGroups(groups, token, position) {
  const last = groups.at(-1);
  if (last?.open && token.bytes) {
    const bytes = [...last.bytes, ...token.bytes];
    const joined = decode(bytes);
    if (joined) {
      Object.assign(last, { bytes, end: position + 1, ...joined });
      return last;
    }
  }
  if (last) last.open = false;
  const alone = token.bytes && decode(token.bytes);
  groups.push({ start: position, end: position + 1, bytes: token.bytes, text: token.text, open: false, special: token.special, ...alone });
  return groups.at(-1);
}

/** Bytes as text; `open` where a character is begun and not ended; null where they can be no UTF-8. */
function decode(bytes) {
  const array = Uint8Array.from(bytes);
  try {
    new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(array, { stream: true });
  } catch {
    return null;
  }
  const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(array);
  return { text, open: text.endsWith("\ufffd") };
}

/** The groups of a list of tokens. */
export function groupTokens(tokens) {
  const groups = [];
  tokens.forEach((token, position) => addToGroups(groups, token, position));
  return groups;
}

/** The text of tokens as a person would write it; special tokens have none. */
export const textOf = (tokens) => groupTokens(tokens).map((group) => (group.special ? "" : group.text)).join("");

/** A view of tokens in `container`: each group of them is a button, all of them together one tab stop. */
export class TokenView {
  /** onChoose(group, span): a click, Enter or Space; onPoint(group or null, span): pointer or focus. */
  constructor(container, { onChoose = () => {}, onPoint = () => {} } = {}) {
    this.container = container;
    this.clear();
    const find = (event) => event.target.closest?.(".token");
    container.addEventListener("click", (event) => find(event) && this.choose(find(event), onChoose));
    container.addEventListener("keydown", (event) => {
      if (find(event) && (event.key === "Enter" || event.key === " ") && !(event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.choose(find(event), onChoose);
      } else moveFocus(event, this.spans);
    });
    for (const kind of ["pointerover", "focusin"]) {
      container.addEventListener(kind, (event) => find(event) && onPoint(this.groupOf(find(event)), find(event)));
    }
    for (const kind of ["pointerleave", "focusout"]) container.addEventListener(kind, () => onPoint(null));
  }

  clear() {
    this.groups = [];
    this.spans = [];
    this.tokens = [];
    this.container.replaceChildren();
  }

  /** Show these tokens and no others. */
  show(tokens) {
    this.clear();
    for (const token of tokens) this.add(token);
  }

  /** Add one token; returns its group's span. */
  add(token) {
    const group = addToGroups(this.groups, token, this.tokens.length);
    this.tokens.push(token);
    if (this.spans.length < this.groups.length) {
      const span = element("span", { class: "token", role: "button", tabindex: this.spans.length ? -1 : 0 });
      this.spans.push(span);
      this.container.append(span);
    }
    const span = this.spans.at(-1);
    span.textContent = group.special ? "end of text" : group.text;
    span.classList.toggle("special", Boolean(group.special));
    span.classList.toggle("open", group.open);
    span.classList.toggle("newline", group.text.includes("\n"));
    return span;
  }

  /** Shade each group by the sum of its tokens' values, which lie in [0, 1]; null leaves a token plain. */
  shade(values, from = 0) {
    this.groups.forEach((group, i) => {
      if (group.end > from) this.shadeSpan(this.spans[i], values.slice(group.start, group.end));
    });
  }

  shadeSpan(span, values) {
    const known = values.filter((value) => value !== null && value !== undefined);
    span.classList.toggle("shaded", known.length > 0);
    span.style.setProperty("--s", Math.min(1, known.reduce((sum, value) => sum + value, 0)).toFixed(3));
  }

  /** Name each group for those who hear the page: its text, then what `words(group)` says of it. */
  label(words, from = 0) {
    this.groups.forEach((group, i) => {
      if (group.end <= from) return;
      const text = group.text.trim() && !group.special ? group.text : this.tokens.slice(group.start, group.end).map(visible).join("");
      this.spans[i].setAttribute("aria-label", [text, words(group)].filter(Boolean).join(", "));
    });
  }

  /** Mark the group that holds a position, and no other; a position of null marks none. */
  mark(position, name = "chosen") {
    this.groups.forEach((group, i) => this.spans[i].classList.toggle(name, position !== null && group.start <= position && position < group.end));
  }

  spanAt(position) {
    return this.spans[this.groups.findIndex((group) => position < group.end)];
  }

  groupOf(span) {
    return this.groups[this.spans.indexOf(span)];
  }

  choose(span, onChoose) {
    for (const other of this.spans) other.tabIndex = other === span ? 0 : -1;
    onChoose(this.groupOf(span), span);
  }
}
