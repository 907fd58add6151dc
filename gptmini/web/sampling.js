// From logits to the next token, as generation/sampling.py: small functions of the logits (V), in a fixed order.
// Each returns new logits in which some are changed, or masked out: -Infinity. Math.fround rounds to float32, in
// which PyTorch computes, so that the same seed gives the same text.

import { softmax } from "./model.js";

const probabilities = (logits) => {
  const p = Float32Array.from(logits);
  softmax(p);
  return p;
};

/** The id of the largest logit. */
export function argmax(logits) {
  let best = 0;
  for (let id = 1; id < logits.length; id++) if (logits[id] > logits[best]) best = id;
  return best;
}

/** Divides the positive and multiplies the negative logits of every token already in the text (CTRL, 4.1). */
export function penalize_repetition(logits, seen, penalty) {
  const changed = Float32Array.from(logits);
  penalty = Math.fround(penalty);
  for (const id of new Set(seen)) changed[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
  return changed;
}

/** Masks out all but the k largest logits (and any that equal the smallest of them). */
export function keep_top_k(logits, k) {
  const kth = Float32Array.from(logits).sort()[Math.max(0, logits.length - k)];
  return logits.map((logit) => (logit < kth ? -Infinity : logit));
}

/** Masks out the tail: keeps the likeliest tokens, as few as have probability p together. */
export function keep_top_p(logits, p) {
  const given = probabilities(logits), likeliest = Float32Array.from(given).sort().reverse();
  let cumulative = 0, last = 0;
  while (last < likeliest.length && Math.fround(cumulative) < Math.fround(p)) cumulative += likeliest[last++];
  return logits.map((logit, id) => (given[id] < likeliest[last - 1] ? -Infinity : logit));
}

/** Masks out every token less than p times as likely as the likeliest one. */
export function keep_min_p(logits, p) {
  const given = probabilities(logits), least = Math.fround(Math.fround(p) * given[argmax(given)]);
  return logits.map((logit, id) => (given[id] < least ? -Infinity : logit));
}

/** Samples from softmax(logits): the token where the cumulative probability passes `uniform`, in [0, 1). */
export function sample(logits, uniform) {
  const given = probabilities(logits);
  const threshold = uniform * given.reduce((sum, p) => sum + p, 0); // the sum is 1 but for rounding
  let cumulative = 0;
  const id = given.findIndex((p) => (cumulative += p) > threshold);
  return id < 0 ? given.length - 1 : id;
}

/** The next token after `ids`: of logits (V) in which what may not come next is masked out already. */
export function choose(logits, ids, uniform, options) {
  const { temperature = 1, top_k, top_p, min_p, repetition_penalty = 1 } = options;
  if (repetition_penalty !== 1) logits = penalize_repetition(logits, ids, repetition_penalty);
  if (temperature < 1e-5) return argmax(logits); // dividing by it would overflow
  logits = logits.map((logit) => logit / Math.fround(temperature));
  if (top_k) logits = keep_top_k(logits, top_k);
  if (top_p && top_p < 1) logits = keep_top_p(logits, top_p);
  if (min_p) logits = keep_min_p(logits, min_p);
  return sample(logits, uniform);
}

/** Python's random.Random(seed): the Mersenne Twister MT19937 (Matsumoto and Nishimura, 1998). */
export class Random {
  /** `seed` is a whole number of at least 0. */
  constructor(seed) {
    const key = []; // its 32-bit digits, the lowest first
    for (let rest = BigInt(seed); rest > 0n || !key.length; rest >>= 32n) key.push(Number(rest & 0xffffffffn));
    const state = (this.state = new Uint32Array(624)), previous = (i) => state[i - 1] ^ (state[i - 1] >>> 30);
    state[0] = 19650218;
    for (let i = 1; i < 624; i++) state[i] = Math.imul(previous(i), 1812433253) + i;
    let i = 1;
    const next = () => {
      if (++i < 624) return;
      state[0] = state[623];
      i = 1;
    };
    for (let k = 0; k < 624; k++, next()) {
      const j = k % key.length;
      state[i] = (state[i] ^ Math.imul(previous(i), 1664525)) + key[j] + j;
    }
    for (let k = 0; k < 623; k++, next()) state[i] = (state[i] ^ Math.imul(previous(i), 1566083941)) - i;
    state[0] = 0x80000000;
    this.place = 624;
  }

  /** The next 32 bits. */
  bits() {
    const { state } = this;
    if (this.place === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.place = 0;
    }
    let y = state[this.place++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /** A number in [0, 1) with 53 random bits. */
  random() {
    return ((this.bits() >>> 5) * 0x4000000 + (this.bits() >>> 6)) / 2 ** 53;
  }
}
