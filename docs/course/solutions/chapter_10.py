"""Solutions of chapter 10."""

import math

from torch.nn import functional as F


def top_k(logits, k):
    """10.1: logits is (B, V); returns (B, V) with -inf for all but the k largest of each row."""
    kth = logits.topk(k).values[:, -1:]  # (B, 1): the smallest that stays
    return logits.masked_fill(logits < kth, -math.inf)


def perplexity(logits, targets):
    """10.2: logits is (B, T, V), targets int64 (B, T); returns a float."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()).exp().item()
