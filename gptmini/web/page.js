/** The page: an engine, the model that was chosen, and the three views. */

import { byId, moveFocus, showError } from "./dom.js";
import { element } from "./element.js";
import { LookInside } from "./inspect.js";
import { Play } from "./play.js";

const views = ["play", "look", "watch"];

/** What a person sees first of a model: its name, a sentence, its shape. */
function describe(info) {
  const number = (value) => value.toLocaleString("en");
  const count = info.parameters < 1e6 ? `${Math.round(info.parameters / 1e3)} thousand` : `${(info.parameters / 1e6).toFixed(1)} million`;
  const tokenizer = { bytes: "bytes", chars: "characters", bpe: "byte pairs of its own text", gpt2: "GPT-2's byte pairs" }[info.tokenizer];
  byId("name").textContent = info.name;
  byId("sentence").textContent = info.sentence && `${info.sentence[0].toUpperCase()}${info.sentence.slice(1).replace(/\.$/, "")}.`;
  byId("facts").textContent = [
    info.parameters && `${count} parameters (${info.dtype})`,
    info.n_layer && `${info.n_layer} layers, ${info.n_head} heads, ${info.n_embd} wide`,
    info.context_length && `reads ${number(info.context_length)} tokens`,
    tokenizer && `${number(info.vocab_size)} tokens: ${tokenizer}`,
  ].filter(Boolean).join(" \u00b7 ");
  document.title = `${info.name} \u00b7 gptmini`;
}

function open(name, parts) {
  for (const view of views) {
    byId(view).hidden = view !== name;
    byId(`tab-${view}`).setAttribute("aria-selected", String(view === name));
    byId(`tab-${view}`).tabIndex = view === name ? 0 : -1;
  }
  for (const view of views) parts[view]?.[view === name ? "enter" : "leave"]?.();
}

async function start() {
  const local = document.body.dataset.engine === "local";
  const { openEngine } = local ? await import("./local_engine.js") : await import("./server_engine.js");
  const engine = await openEngine();
  let models = await engine.models(), info;
  if (!models.length) throw new Error("There is no model to play with: train one, then start gptmini serve again");
  const play = new Play(engine);
  const parts = { play, look: new LookInside(engine, play) };

  // A view is part of the address, so that Back works. (With "#look" the browser would scroll there and drop the focus.)
  const tabs = () => views.map((view) => byId(`tab-${view}`)).filter((tab) => !tab.hidden);
  const show = () => {
    const first = info.run && !info.checkpoints.length ? "watch" : "play";  // a run without a checkpoint cannot write yet
    open(views.find((view) => `#/${view}` === location.hash && !byId(`tab-${view}`).hidden) ?? first, parts);
  };
  for (const view of views) byId(`tab-${view}`).onclick = () => (location.hash = `/${view}`);
  document.querySelector("[role=tablist]").onkeydown = (event) => void moveFocus(event, tabs());  // a returned false would cancel Enter
  addEventListener("hashchange", show);

  const choose = (chosen) => {
    info = chosen;
    describe(info);
    play.setModel(info);
    parts.watch?.setModel(info);
    show();
  };
  if (models.some((one) => one.run)) {
    const { Watch } = await import("./watch.js");
    parts.watch = new Watch(engine, async () => {
      models = await engine.models();
      choose(models.find((one) => one.id === info.id) ?? models[0]);
    });
    byId("tab-watch").hidden = false;
  }
  byId("models").hidden = models.length < 2;
  byId("model").append(...models.map((one) => element("option", { value: one.id }, one.name)));
  byId("model").onchange = () => choose(models[byId("model").selectedIndex]);
  choose(models[0]);
  window.gptmini = { engine, ...parts };  // for the curious, in the browser's console
  document.body.dataset.ready = "true";
}

start().catch((error) => {
  byId("name").textContent = "gptmini";
  showError(byId("page-error"), error);
});
