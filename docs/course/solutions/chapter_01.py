"""Solutions of chapter 1."""

import torch


def distances(T):
    """1.1: returns int64 (T, T), i - j in row i and column j."""
    position = torch.arange(T)
    return position[:, None] - position  # (T, 1) - (T,)


def normalize(x):
    """1.2: x is (B, T, C); returns (B, T, C) in which every vector has length 1."""
    return x / x.pow(2).sum(dim=-1, keepdim=True).sqrt()  # (B, T, C) / (B, T, 1)


def broadcast(a, b):
    """1.3: two tuples; returns the tuple of the result, or None where there is none."""
    length = max(len(a), len(b))
    a, b = (1,) * (length - len(a)) + a, (1,) * (length - len(b)) + b  # a missing size acts as a 1
    if any(x != y and 1 not in (x, y) for x, y in zip(a, b, strict=True)):
        return None
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))
