// The engine of an exported page: the model computed in the page itself. server_engine.js is the same over HTTP.
// A computation gives the page a turn after every few tokens, so that it stays alive and can stop it.

import { GPT, KVCache, dot, softmax } from "./model.js";
import { Random, choose } from "./sampling.js";
import { build_tokenizer } from "./tokenizers.js";
import { readModel } from "./weights.js";

const MAX_INSPECTED = 128; // tokens
const MULTIPLICATIONS_PER_TURN = 2e7; // some 20 ms

/** The engine of the model in this page; throws one sentence where it is damaged. */
export async function openEngine() {
  return new LocalEngine(readModel(document.getElementById("weights")));
}

/** Computes with one model; see each method for its result. `model` arguments, an info's id, are ignored. */
export class LocalEngine {
  constructor({ info, config, tokenizer, weights }) {
    this.info = info;
    this.gpt = new GPT(config, weights);
    this.tokenizer = build_tokenizer(tokenizer);
    this.cache = new KVCache(config);
    this.cached = []; // the ids whose keys and values the cache holds
    this.busy = Promise.resolve(); // until the last computation with the cache has ended
    this.chunk = Math.max(1, Math.floor(MULTIPLICATIONS_PER_TURN / info.parameters)); // tokens in a turn
  }

  /** What there is to choose from: one info. */
  async models() {
    return [this.info];
  }

  /** The tokens of a text: [{id, text, special}]. */
  async tokenize(model, text) {
    return this.tokenizer.encode(text).map((id) => this.tokenizer.describe(id));
  }

  /** Yields {token, probability, top} for each new token, until the end of text; `signal` stops it. */
  async *generate(model, ids, { max_new_tokens, seed, signal, ...options }) {
    const { tokenizer } = this, generator = new Random(seed ?? crypto.getRandomValues(new Uint32Array(1))[0]);
    if (ids.length) ids = ids.slice(-this.gpt.config.context_length);
    else {
      ids = [this.start()];
      // A text that was one document starts with a token of text: it is the first to be seen.
      const token = tokenizer.describe(ids[0]);
      if (!token.special) yield { token, probability: null, top: [] };
    }
    for (let i = 0; i < max_new_tokens; i++) {
      const logits = await this.logits(ids, signal);
      if (!logits) return;
      const forbidden = tokenizer.forbidden(ids), scores = logits.map((x, id) => (forbidden[id] ? -Infinity : x));
      // End of text after end of text would be an empty text.
      if (ids.at(-1) === tokenizer.end_of_text) scores[tokenizer.end_of_text] = -Infinity;
      const id = choose(scores, ids, generator.random(), options);
      softmax(logits);
      yield { token: tokenizer.describe(id), probability: logits[id], top: this.likeliest(logits, 20) };
      if (id === tokenizer.end_of_text) return;
      ids.push(id);
    }
  }

  /** {top}: the likeliest 20 after ids, [[token, probability]]. */
  async next(model, ids, signal) {
    const logits = await this.logits(ids.length ? ids.slice(-this.gpt.config.context_length) : [this.start()], signal);
    if (!logits) throw new DOMException("stopped", "AbortError");
    softmax(logits);
    return { top: this.likeliest(logits, 20) };
  }

  /** What each layer makes of the last 128 ids: {tokens, surprisal, lens, attention, attention_maps}. */
  async inspect(model, ids, signal) {
    ids = ids.slice(-Math.min(MAX_INSPECTED, this.gpt.config.context_length));
    const { blocks, ln_f, lm_head, config } = this.gpt, cache = new KVCache(config), { n_head, vocab_size } = config;
    const T = ids.length, weights = blocks.map(() => new Float32Array(n_head * T * T)); // (H, T, T) for each layer
    const lens = Array.from({ length: blocks.length + 1 }, () => []), surprisal = [null];
    for (let start = 0, chunk; start < T; start += chunk.length) {
      chunk = ids.slice(start, start + this.chunk);
      const x = this.gpt.embed(chunk, cache); // the residual stream
      for (let layer = 0; layer <= blocks.length; layer++) {
        if (layer > 0) {
          const { attn } = blocks[layer - 1];
          blocks[layer - 1].forward(x, chunk.length, cache);
          copyRows(attn.weights, weights[layer - 1], n_head, start, chunk.length, T);
        }
        // What the model would say if it ended here: for the last layer, what it says.
        const logits = lm_head.forward(ln_f.forward(x, chunk.length), chunk.length); // (chunk, V)
        for (let t = 0; t < chunk.length; t++) {
          const row = logits.subarray(t * vocab_size, (t + 1) * vocab_size);
          softmax(row);
          lens[layer].push(this.likeliest(row, 5));
          if (layer === blocks.length && start + t + 1 < T) surprisal.push(-Math.log2(row[ids[start + t + 1]]));
        }
        await turn(signal);
      }
    }
    return {
      tokens: ids.map((id) => this.tokenizer.describe(id)),
      surprisal,
      lens,
      attention: async (layer, head) => weights[layer].slice(head * T * T, (head + 1) * T * T),
      attention_maps: async () => {
        const maps = new Uint8Array(blocks.length * n_head * T * T);
        weights.forEach((of, layer) => maps.set(of.map((weight) => weight * 255), layer * n_head * T * T));
        return maps;
      },
    };
  }

  /** The 20 tokens whose embeddings have the smallest angle to that of `id`: [[token, cosine]]. */
  async neighbors(model, id) {
    const { data, scales, C } = this.gpt.token_embedding, V = data.length / C;
    const vector = Float32Array.from(data.subarray(id * C, (id + 1) * C)); // scales cancel out in a cosine
    const length = (row) => Math.sqrt(dot(data, row * C, data, row * C, C)) || 1;
    const cosines = Float32Array.from({ length: V }, (_, row) => dot(vector, 0, data, row * C, C) / length(row) / length(id));
    cosines[id] = -Infinity;
    return this.likeliest(cosines, Math.min(20, V - 1));
  }

  start() {
    if (this.tokenizer.start_token === null) throw new Error("this model has no end of text to start from: write something first");
    return this.tokenizer.start_token;
  }

  /** The [token, number] of the n largest numbers (V), the largest first. */
  likeliest(numbers, n) {
    return largest(numbers, n).map((id) => [this.tokenizer.describe(id), numbers[id]]);
  }

  /** The logits (V) after ids, null where `signal` stops it. One computation after another uses the cache. */
  logits(ids, signal) {
    const result = this.busy.then(() => this.compute(ids, signal));
    this.busy = result.catch(() => {});
    return result;
  }

  async compute(ids, signal) {
    const { config } = this.gpt, window = ids.slice(window_start(ids.length, config.context_length));
    // Keep what the cache holds of this window, all but the last token, whose logits are needed.
    let known = 0;
    while (known < window.length - 1 && window[known] === this.cached[known]) known++;
    this.cache.length = known;
    this.cached = window.slice(0, known);
    for (;;) {
      if (signal?.aborted) return null;
      const chunk = window.slice(this.cached.length, this.cached.length + this.chunk);
      const x = this.gpt.hidden_states(chunk, this.cache); // (chunk, C)
      this.cached.push(...chunk);
      if (this.cached.length === window.length) {
        const last = x.subarray((chunk.length - 1) * config.n_embd);
        const logits = this.gpt.lm_head.forward(last, 1).slice(0, config.vocab_size);
        await turn();
        return logits;
      }
      await turn();
    }
  }
}

/** Where the window starts in a text of `length` tokens, as in generation/generate.py: it jumps by half a context. */
export function window_start(length, context_length) {
  const kept = Math.max(1, Math.floor(context_length / 2)), jump = context_length + 1 - kept;
  return Math.max(0, Math.ceil((length - context_length) / jump)) * jump;
}

/** The ids of the n largest numbers, the largest first. */
function largest(numbers, n) {
  const ids = [];
  for (let id = 0; id < numbers.length; id++) {
    if (ids.length === n && !(numbers[id] > numbers[ids[n - 1]])) continue;
    let place = ids.length;
    while (place > 0 && numbers[ids[place - 1]] < numbers[id]) place--;
    ids.splice(place, 0, id);
    if (ids.length > n) ids.pop();
  }
  return ids;
}

/** Copies attention (H, n, start + n) into maps (H, T, T), from row `start` on. */
function copyRows(attention, maps, H, start, n, T) {
  const S = start + n;
  for (let row = 0; row < H * n; row++) {
    const h = Math.floor(row / n), t = start + (row % n);
    maps.set(attention.subarray(row * S, (row + 1) * S), (h * T + t) * T);
  }
}

const channel = new MessageChannel();

/** Lets the page draw and hear its user. (setTimeout would wait at least 4 ms.) */
function turn(signal) {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) reject(new DOMException("stopped", "AbortError"));
    channel.port1.addEventListener("message", resolve, { once: true });
    channel.port1.start();
    channel.port2.postMessage(null);
  });
}
