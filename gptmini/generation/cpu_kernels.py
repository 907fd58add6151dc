"""A new token's arithmetic, in loops that numba compiles: products, LayerNorm, attention, GELU.

A new token is one row times every weight of the model: these loops read each weight once, on all cores.

Letters in shapes are those of `model.py`; B rows get a new token, and a layer has O outputs. Its weight
(O, in) is float32, int8 to be multiplied by `scale` (O,), or uint16: half a float32, as bfloat16 is.
"""

import sys

import numba
import numpy as np
from numba import njit, prange, types
from numba.extending import overload

if sys.platform != "darwin":  # there a second OpenMP library, beside PyTorch's, would end the process
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]  # the last is half as fast

# Sums in the lanes of vectors, no check for a division by zero; NaN and infinity keep their meaning.
FAST = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
EPSILON = np.float32(1e-5)  # nn.LayerNorm's
CHUNK = 32  # outputs that a thread computes in turn


def compiled(**options):
    """numba's njit, kept on disk for the next process where there is a place to write."""

    def decorate(function):
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # neither beside this file nor in the user's cache folder
            return njit(**options)(function)

    return decorate


@compiled(**FAST)
def layer_norm(x, weight, bias):
    """Each row of x (B, C) with mean 0 and variance 1, times weight, plus bias."""
    C = x.shape[1]
    y = np.empty_like(x)
    for b in range(len(x)):
        mean = variance = np.float32(0)
        for i in range(C):
            mean += x[b, i] / np.float32(C)
        for i in range(C):
            variance += (x[b, i] - mean) * (x[b, i] - mean) / np.float32(C)
        scale = np.float32(1) / np.sqrt(variance + EPSILON)
        for i in range(C):
            y[b, i] = (x[b, i] - mean) * scale * weight[i] + bias[i]
    return y


@compiled(parallel=True)
def multiply(x, weight, scale, bias, gelu):
    """x (B, in) times the weight (O, in), times scale, plus bias (O,), through GELU if asked: (B, O)."""
    B, outputs = len(x), len(weight)
    y = np.empty((B, outputs), np.float32)
    for chunk in prange((outputs + CHUNK - 1) // CHUNK):
        start = chunk * CHUNK
        stop = min(start + CHUNK, outputs)
        if B == 1:
            _multiply_row(x[0], weight, start, stop, y[0])
        else:
            _multiply_tiles(x, weight, start, stop, y)
        for b in range(B):
            _finish(y[b, start:stop], scale[start:stop], bias[start:stop], gelu)
    return y


@njit(**FAST)
def _multiply_row(x, weight, start, stop, y):
    for o in range(start, stop):
        total = np.float32(0)
        for i in range(len(x)):
            total += _widen(weight[o, i]) * x[i]
        y[o] = total


@njit(**FAST)
def _multiply_tiles(x, weight, start, stop, y):
    # Four rows of weights by two of x, so that each number loaded serves several products. A tile that
    # sticks out computes its last row again.
    for o in range(start, stop, 4):
        o1, o2, o3 = min(o + 1, stop - 1), min(o + 2, stop - 1), min(o + 3, stop - 1)
        for b in range(0, len(x), 2):
            c = min(b + 1, len(x) - 1)
            b0 = b1 = b2 = b3 = c0 = c1 = c2 = c3 = np.float32(0)
            for i in range(weight.shape[1]):
                w0, w1 = _widen(weight[o, i]), _widen(weight[o1, i])
                w2, w3 = _widen(weight[o2, i]), _widen(weight[o3, i])
                xb, xc = x[b, i], x[c, i]
                b0, b1, b2, b3 = b0 + w0 * xb, b1 + w1 * xb, b2 + w2 * xb, b3 + w3 * xb
                c0, c1, c2, c3 = c0 + w0 * xc, c1 + w1 * xc, c2 + w2 * xc, c3 + w3 * xc
            y[b, o], y[b, o1], y[b, o2], y[b, o3] = b0, b1, b2, b3
            y[c, o], y[c, o1], y[c, o2], y[c, o3] = c0, c1, c2, c3


@njit(**FAST)
def _finish(y, scale, bias, gelu):
    for o in range(len(y)):
        y[o] = y[o] * scale[o] + bias[o]
    if gelu:
        for o in range(len(y)):
            # x / 2 (1 + tanh(u)) is x / (1 + e^(-2u))
            u = np.float32(0.7978845608) * (y[o] + np.float32(0.044715) * y[o] * y[o] * y[o])
            y[o] = y[o] / (np.float32(1) + _exp(np.float32(-2) * u))


@compiled(parallel=True)
def attend(qkv, keys, values, lengths):
    """Store the new keys and values of qkv (B, 3C), and let its queries attend to all so far: (B, C).

    The cache's `keys` and `values` are (B, H, capacity, D); the new ones become the last of `lengths` (B,).
    """
    B, H, _, D = keys.shape
    qkv = qkv.reshape(B, 3, H, D)
    y = np.zeros((B, H, D), np.float32)
    for head in prange(B * H):
        b, h, S = head // H, head % H, lengths[head // H]
        for d in range(D):
            keys[b, h, S - 1, d] = qkv[b, 1, h, d]
            values[b, h, S - 1, d] = qkv[b, 2, h, d]
        _attend_head(qkv[b, 0, h], keys[b, h, :S], values[b, h, :S], y[b, h])
    return y.reshape(B, H * D)


@njit(**FAST)
def _attend_head(q, keys, values, y):
    """Add softmax(q k^T / sqrt(D)) v to y (D,), for one query (D,) and S keys and values (S, D)."""
    S, D = keys.shape
    weights, largest, total = np.empty(S, np.float32), np.float32(-np.inf), np.float32(0)
    for s in range(S):
        score = np.float32(0)
        for d in range(D):
            score += q[d] * keys[s, d]
        weights[s] = score / np.sqrt(np.float32(D))
    for s in range(S):
        largest = max(largest, weights[s])
    for s in range(S):
        weights[s] = _exp(weights[s] - largest)
        total += weights[s]
    for s in range(S):
        for d in range(D):
            y[d] += weights[s] / total * values[s, d]


@njit(**FAST)
def _exp(x):
    """e^x as 2^n e^r, |r| <= ln(2) / 2, to 2e-7 (Cephes, expf.c). A loop over it is vectorized."""
    x = np.float32(-87) if x < np.float32(-87) else np.float32(87) if x > np.float32(87) else x
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)  # ln(2) in two parts
    p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)  # n as exponent


def _widen(weight):
    """A weight as float32."""


@overload(_widen)
def _widen_by_type(weight):
    if weight == types.uint16:
        return lambda weight: np.uint32(np.uint32(weight) << np.uint32(16)).view(np.float32)
    return lambda weight: np.float32(weight)
