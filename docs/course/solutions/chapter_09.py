"""Solutions of chapter 9."""

import math

import torch
from torch.nn import functional as F


def accumulate(layer, x, y, parts):
    """9.1: backward adds to .grad, so each part's mean is divided by the number of parts."""
    for x_part, y_part in zip(x.chunk(parts), y.chunk(parts), strict=True):
        (F.mse_loss(layer(x_part), y_part) / parts).backward()


def cosine(step, warmup_steps, max_steps):
    """9.2: the factor of the learning rate at step 1, 2, ..., max_steps."""
    if step <= warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / (max_steps - warmup_steps)  # 0 to 1
    return 0.5 * (1 + math.cos(math.pi * progress))


def clip(gradients, max_norm):
    """9.3: one factor for all, from their common length."""
    norm = torch.sqrt(sum(gradient.pow(2).sum() for gradient in gradients))
    factor = min(1.0, max_norm / norm.item())
    return [factor * gradient for gradient in gradients]
