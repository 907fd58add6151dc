"""Solutions of chapter 7."""

import math

import torch


def heads_one_by_one(q, k, v, mask, H):
    """7.1: q, k, v are (B, T, C); returns (B, T, C)."""
    D = q.shape[-1] // H
    heads = []
    for h in range(H):
        part = slice(h * D, (h + 1) * D)
        scores = q[..., part] @ k[..., part].mT / math.sqrt(D)  # (B, T, T)
        heads.append(scores.masked_fill(~mask, -math.inf).softmax(dim=-1) @ v[..., part])
    return torch.cat(heads, dim=-1)  # H of (B, T, D) side by side


def block_parameters(C):
    """7.2: c_attn, attention's c_proj, c_fc, the MLP's c_proj, and two LayerNorms of 2 C numbers."""
    attention = (3 * C * C + 3 * C) + (C * C + C)
    mlp = (4 * C * C + 4 * C) + (4 * C * C + C)
    return attention + mlp + 2 * 2 * C
