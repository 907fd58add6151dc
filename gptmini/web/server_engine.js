/** ServerEngine: the model computed by `gptmini serve`, asked over HTTP. The same interface as LocalEngine. */

/** The engine of the server that this page came from. */
export async function openEngine() {
  return new ServerEngine();
}

/** The answer to a request; raises Error with the server's own sentence where it refuses. */
async function ask(path, body, signal) {
  const request = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(`api/${path}`, { ...request, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: is gptmini serve still running?");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  throw new Error(said?.error?.message ?? `The server answered ${response.status}`);
}

const json = async (path, body, signal) => (await ask(path, body, signal)).json();

/** The data of a stream of server-sent events, one object each, up to [DONE]. */
async function* events(response) {
  let rest = "";
  for await (const text of textsOf(response.body)) {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const said = JSON.parse(data);
      if (said.error) throw new Error(said.error.message);
      yield said;
    }
  }
  throw new Error("The server ended its answer early");
}

async function* textsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
  } finally {
    reader.cancel().catch(() => {});  // closes the connection, which stops the server's generation
  }
}

export class ServerEngine {
  models() {
    return json("models");
  }

  tokenize(model, text, signal) {
    return json("tokenize", { model, text }, signal);
  }

  async *generate(model, ids, { signal, ...options }) {
    try {
      yield* events(await ask("generate", { model, ids, ...options }, signal));
    } catch (error) {
      if (error.name !== "AbortError") throw error;  // stopped by the person, who knows
    }
  }

  next(model, ids, signal) {
    return json("next", { model, ids }, signal);
  }

  async inspect(model, ids, signal) {
    const found = await json("inspect", { model, ids }, signal);
    const shown = found.tokens.map((token) => token.id);
    const attention = async (layer, head) => (await ask("attention", { model, ids: shown, layer, head }, signal)).arrayBuffer();
    return {
      ...found,
      attention: async (layer, head) => new Float32Array(await attention(layer, head)),  // (T, T)
      attention_maps: async () => new Uint8Array(await attention(null, null)),  // (n_layer, n_head, T, T)
    };
  }

  neighbors(model, id, signal) {
    return json("neighbors", { model, id }, signal);
  }

  /** Call onEvent(kind, value) for what a run writes, as it writes it; returns a function that ends it. */
  watch(run, onEvent) {
    const source = new EventSource(`api/watch?run=${encodeURIComponent(run)}`);
    source.onopen = () => onEvent("restart", {});  // again after a break: all that the run wrote follows
    for (const kind of ["metrics", "samples", "state", "restart"]) {
      source.addEventListener(kind, (event) => onEvent(kind, JSON.parse(event.data)));
    }
    source.onerror = () => onEvent("error", new Error("The server does not answer: is gptmini serve still running?"));
    return () => source.close();
  }
}
