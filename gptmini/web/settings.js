/** How the next token is chosen: the form beside the text. */

import { byId } from "./dom.js";

/** Show the values of sliders beside them; a seed is typed only where it is not random. */
export function listenToSettings() {
  const form = byId("settings");
  const show = () => {
    for (const output of form.querySelectorAll("output")) output.textContent = Number(byId(output.htmlFor.value).value).toFixed(2);
    byId("seed").readOnly = byId("random").checked;
    byId("seed").required = !byId("random").checked;
  };
  form.onsubmit = (event) => event.preventDefault();
  form.oninput = show;
  show();
}

/** Whether every setting has a possible value; the browser says beside a field what is wrong with it. */
export const settingsAreValid = () => byId("settings").reportValidity();

/** What an engine's generate takes. A random seed is drawn here, so that it can be shown and used again. */
export function readSettings() {
  if (byId("random").checked) byId("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;
  const number = (id) => (byId(id).value === "" ? null : Number(byId(id).value));
  return { max_new_tokens: number("length"), temperature: number("temperature"), top_k: number("top_k"), top_p: number("top_p"), seed: number("seed") };
}
