"""Solutions of chapter 6."""

import math

import torch


def attention_weights(q, k, mask):
    """6.1: q is (B, T, D), k is (B, S, D), mask bool (T, S); returns (B, T, S)."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask, -math.inf).softmax(dim=-1)


def look_back(T):
    """6.2: the query of position t is the key of t - 1, long enough to win the softmax by far."""
    keys = torch.eye(T)
    queries = torch.eye(T)[[0, *range(T - 1)]]
    return 100 * queries, keys


def sees(function, T, t):
    """6.3: a result depends on an input where its gradient is not zero."""
    x = torch.randn(1, T, 8, requires_grad=True)
    function(x)[0, t].sum().backward()
    return x.grad[0].abs().sum(dim=-1) > 0  # (T,)
