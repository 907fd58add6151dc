/** The texts that were tried. A branch holds its steps: {token, probability, top}, null where it was typed. */

import { moveFocus } from "./dom.js";
import { element } from "./element.js";
import { textOf } from "./tokens.js";

/** How many steps two branches begin with in common. */
export function commonLength(a, b) {
  const shorter = Math.min(a.steps.length, b.steps.length);
  let i = 0;
  while (i < shorter && a.steps[i].token.id === b.steps[i].token.id) i++;
  return i;
}

/** Every branch below the one it shares most with, depth first: [{branch, depth, fork}]. */
export function treeOf(branches) {
  const children = new Map([[null, []], ...branches.map((branch) => [branch, []])]);
  branches.forEach((branch, i) => {
    let parent = null, fork = 0;
    for (const other of branches.slice(0, i)) {
      const common = commonLength(branch, other);
      if (common > fork) [parent, fork] = [other, common];
    }
    children.get(parent).push({ branch, fork });
  });
  const below = (parent, depth) => children.get(parent).flatMap(({ branch, fork }) => [{ branch, depth, fork }, ...below(branch, depth + 1)]);
  return below(null, 0);
}

/** The positions at which another branch leaves this one. */
export function forksOf(branch, branches) {
  const ends = (other, at) => at === branch.steps.length || at === other.steps.length;
  const found = branches.filter((other) => other !== branch).map((other) => [other, commonLength(branch, other)]);
  return new Set(found.filter(([other, at]) => !ends(other, at)).map(([, at]) => at));
}

/** Draw the tree as a list of buttons, each with its first differing words. */
export function drawBranches(list, branches, current, onSwitch) {
  const words = (steps) => textOf(steps.map((step) => step.token)).replace(/\s+/g, " ");
  const items = treeOf(branches).map(({ branch, depth, fork }) => {
    const before = words(branch.steps.slice(Math.max(0, fork - 8), fork)).slice(-20);
    const after = words(branch.steps.slice(fork, fork + 40)).slice(0, 60) || "(nothing yet)";
    const button = element("button", { type: "button", dir: "auto" }, element("span", {}, fork ? `\u2026${before}` : ""), element("b", {}, after));
    if (branch === current) button.setAttribute("aria-current", "true");
    button.tabIndex = branch === current ? 0 : -1;
    button.onclick = () => onSwitch(branch);
    const item = element("li", {}, button);
    item.style.setProperty("--depth", Math.min(depth, 5));
    return item;
  });
  list.replaceChildren(...items);
  list.onkeydown = (event) => void moveFocus(event, [...list.querySelectorAll("button")]);  // a returned false would cancel Enter
}
