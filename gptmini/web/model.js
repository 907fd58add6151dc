// GPT-2, from token ids to logits, without a library. Read it beside model.py: the same names in the same order.
//
// One text at a time, so there is no B. A tensor is a flat Float32Array, row after row; letters in shapes:
//     T  tokens in the pass    S  keys attended to (T, and what the cache holds)    C  width, n_embd
//     H  heads                 D  width of a head, C / H                            V  vocabulary
// A layer keeps the array that it returns, and fills it again at its next call: nothing is allocated per token.

/** The sum of n products, x[i] w[j] + x[i + 1] w[j + 1] + ... */
export function dot(x, i, w, j, n) {
  // Four sums side by side: each addition has to wait for the one before it in the same sum.
  let a = 0, b = 0, c = 0, d = 0;
  const end = i + n;
  for (; i + 3 < end; i += 4, j += 4) {
    a += x[i] * w[j];
    b += x[i + 1] * w[j + 1];
    c += x[i + 2] * w[j + 2];
    d += x[i + 3] * w[j + 3];
  }
  for (; i < end; i++, j++) a += x[i] * w[j];
  return a + b + c + d;
}

/** Turns scores[start .. end) into weights that sum to 1. */
export function softmax(scores, start = 0, end = scores.length) {
  let max = -Infinity, sum = 0;
  for (let i = start; i < end; i++) max = Math.max(max, scores[i]);
  for (let i = start; i < end; i++) sum += scores[i] = Math.exp(scores[i] - max); // of the difference: no overflow
  for (let i = start; i < end; i++) scores[i] /= sum;
}

/** GELU by GPT-2's tanh formula, on the first n numbers of x. */
function gelu(x, n) {
  const factor = Math.sqrt(2 / Math.PI);
  for (let i = 0; i < n; i++) x[i] *= 0.5 * (1 + Math.tanh(factor * (x[i] + 0.044715 * x[i] ** 3)));
  return x;
}

function add(x, y, n) {
  for (let i = 0; i < n; i++) x[i] += y[i];
}

/** The array, or a larger one where it has no room for n numbers. */
function room(array, n) {
  return array?.length >= n ? array : new Float32Array(n);
}

/** x W^T + bias for a weight (out, in): float32, or int8 with a scale for each row. */
class Linear {
  constructor({ data, shape, scales }, bias) {
    Object.assign(this, { data, scales, bias: bias?.data });
    [this.out_features, this.in_features] = shape;
  }

  /** (T, in) to (T, out). */
  forward(x, T) {
    const { data, scales, bias, in_features, out_features } = this;
    const y = (this.y = room(this.y, T * out_features));
    for (let row = 0; row < out_features; row++) {
      const scale = scales ? scales[row] : 1, shift = bias ? bias[row] : 0;
      // All T positions with one row of the weight: it is read from memory once.
      for (let t = 0; t < T; t++) {
        y[t * out_features + row] = dot(x, t * in_features, data, row * in_features, in_features) * scale + shift;
      }
    }
    return y;
  }
}

/** A table of vectors (rows, C), float32 or int8 with a scale for each row. */
class Embedding {
  constructor({ data, shape, scales }) {
    Object.assign(this, { data, scales, C: shape[1] });
  }

  /** Adds row `id` of the table to the C numbers of x from `start` on. */
  addRow(id, x, start) {
    const scale = this.scales ? this.scales[id] : 1, row = id * this.C;
    for (let i = 0; i < this.C; i++) x[start + i] += this.data[row + i] * scale;
  }
}

/** Rescales each row to mean 0 and variance 1, then by learned weights. */
class LayerNorm {
  constructor(weight, bias) {
    Object.assign(this, { weight: weight.data, bias: bias?.data });
  }

  /** (T, C) to (T, C). */
  forward(x, T) {
    const { weight, bias } = this, C = weight.length;
    const y = (this.y = room(this.y, T * C));
    for (let t = 0, start = 0; t < T; t++, start += C) {
      let mean = 0, variance = 0;
      for (let i = 0; i < C; i++) mean += x[start + i] / C;
      for (let i = 0; i < C; i++) variance += (x[start + i] - mean) ** 2 / C;
      const scale = 1 / Math.sqrt(variance + 1e-5);
      for (let i = 0; i < C; i++) y[start + i] = (x[start + i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
    }
    return y;
  }
}

/** softmax(q k^T / sqrt(D)) v for each head: fills `weights` (H, T, S), whose rows sum to 1, and y (T, C).
 *  qkv is (T, 3C); keys and values are (S, C). */
function eager(y, weights, qkv, keys, values, T, S, C, H) {
  const D = C / H;
  y.fill(0, 0, T * C);
  for (let h = 0; h < H; h++) {
    for (let t = 0; t < T; t++) {
      // The T queries are the last T of the S keys. The future is not masked out, it is never computed.
      const row = (h * T + t) * S, seen = S - T + t + 1;
      for (let s = 0; s < seen; s++) {
        weights[row + s] = dot(qkv, t * 3 * C + h * D, keys, s * C + h * D, D) / Math.sqrt(D);
      }
      softmax(weights, row, row + seen);
      weights.fill(0, row + seen, row + S);
      for (let s = 0; s < seen; s++) {
        const weight = weights[row + s], to = t * C + h * D, from = s * C + h * D;
        for (let i = 0; i < D; i++) y[to + i] += weight * values[from + i];
      }
    }
  }
}

/** Keys and values of past tokens, (context_length, C) for each layer, so that they are not computed again. */
export class KVCache {
  constructor({ n_layer, n_embd, context_length }) {
    this.length = 0;
    const table = () => new Float32Array(context_length * n_embd);
    this.keys = Array.from({ length: n_layer }, table);
    this.values = Array.from({ length: n_layer }, table);
  }

  /** Stores a layer's keys and values, columns C to 3C of qkv (T, 3C), as the last T rows. */
  append(layer, qkv, T, C) {
    for (let t = 0; t < T; t++) {
      const place = (this.length - T + t) * C, start = t * 3 * C;
      this.keys[layer].set(qkv.subarray(start + C, start + 2 * C), place);
      this.values[layer].set(qkv.subarray(start + 2 * C, start + 3 * C), place);
    }
  }
}

/** Every position gathers values from itself and earlier positions, H times in parallel. */
class CausalSelfAttention {
  constructor(config, layer, linear) {
    Object.assign(this, { H: config.n_head, C: config.n_embd, layer });
    this.c_attn = linear("c_attn");
    this.c_proj = linear("c_proj");
  }

  /** Mixes (T, C) across positions; leaves what attended to what in `weights`, (H, T, S). */
  forward(x, T, cache) {
    const { H, C, layer } = this, S = cache.length;
    const qkv = this.c_attn.forward(x, T); // (T, 3C): query, key and value of each position
    cache.append(layer, qkv, T, C);
    this.weights = room(this.weights, H * T * S);
    this.y = room(this.y, T * C); // the heads side by side
    eager(this.y, this.weights, qkv, cache.keys[layer], cache.values[layer], T, S, C, H);
    return this.c_proj.forward(this.y, T); // (T, C)
  }
}

/** Position-wise feed-forward: expand 4x, GELU, project back. */
class MLP {
  constructor(config, linear) {
    this.n_hidden = 4 * config.n_embd;
    this.c_fc = linear("c_fc");
    this.c_proj = linear("c_proj");
  }

  /** Transforms each position of (T, C) on its own. */
  forward(x, T) {
    x = gelu(this.c_fc.forward(x, T), T * this.n_hidden); // (T, 4C)
    return this.c_proj.forward(x, T); // (T, C)
  }
}

/** One layer: attention, then MLP. */
class Block {
  constructor(config, layer, linear, norm) {
    this.C = config.n_embd;
    this.ln_1 = norm("ln_1");
    this.attn = new CausalSelfAttention(config, layer, (name) => linear(`attn.${name}`));
    this.ln_2 = norm("ln_2");
    this.mlp = new MLP(config, (name) => linear(`mlp.${name}`));
  }

  /** Adds attention and MLP to the residual stream x (T, C), in place. */
  forward(x, T, cache) {
    add(x, this.attn.forward(this.ln_1.forward(x, T), T, cache), T * this.C);
    add(x, this.mlp.forward(this.ln_2.forward(x, T), T), T * this.C);
  }
}

/** GPT-2. `weights` has PyTorch's names: {"blocks.0.ln_1.weight": {data, shape, scales}, ...}. */
export class GPT {
  constructor(config, weights) {
    const linear = (name) => new Linear(weights[`${name}.weight`], weights[`${name}.bias`]);
    const norm = (name) => new LayerNorm(weights[`${name}.weight`], weights[`${name}.bias`]);
    this.config = config;
    this.token_embedding = new Embedding(weights["token_embedding.weight"]);
    this.position_embedding = new Embedding(weights["position_embedding.weight"]);
    this.blocks = Array.from({ length: config.n_layer }, (_, layer) => {
      const inside = (part) => (name) => part(`blocks.${layer}.${name}`);
      return new Block(config, layer, inside(linear), inside(norm));
    });
    this.ln_f = norm("ln_f");
    this.lm_head = new Linear(weights["token_embedding.weight"]); // tied: one table for input and output
  }

  /** Logits (T, V) for T ids that follow what the cache holds; their keys and values join it. */
  forward(tokens, cache) {
    return this.lm_head.forward(this.hidden_states(tokens, cache), tokens.length);
  }

  /** The residual stream (T, C) that `lm_head` turns into logits. */
  hidden_states(tokens, cache) {
    const x = this.embed(tokens, cache);
    for (const block of this.blocks) block.forward(x, tokens.length, cache);
    return this.ln_f.forward(x, tokens.length);
  }

  /** Makes room for these tokens in the cache; returns their vectors, each token's plus its position's, (T, C). */
  embed(tokens, cache) {
    const C = this.config.n_embd, x = new Float32Array(tokens.length * C);
    tokens.forEach((token, t) => {
      this.token_embedding.addRow(token, x, t * C);
      this.position_embedding.addRow(cache.length + t, x, t * C);
    });
    cache.length += tokens.length;
    return x;
  }
}
