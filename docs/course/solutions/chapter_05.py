"""Solutions of chapter 5."""

import torch


def window_mask(T, n):
    """5.1: bool (T, T), True for the position itself and the n - 1 before it."""
    ones = torch.ones(T, T, dtype=torch.bool)
    return torch.tril(ones) & torch.triu(ones, diagonal=1 - n)


def softmax(scores):
    """5.2: exp(s - max) / sum exp(s - max): exp(-max) is a factor above and below, so it cancels."""
    powers = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return powers / powers.sum(dim=-1, keepdim=True)


def running_mean(x):
    """5.3: x is (B, T, C); returns (B, T, C)."""
    count = torch.arange(1, x.shape[1] + 1)
    return x.cumsum(dim=1) / count[:, None]  # (B, T, C) / (T, 1)
