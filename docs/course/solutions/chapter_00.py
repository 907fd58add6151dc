"""Solutions of chapter 0."""

import torch


def frequency_loss(train, val, V):
    """0.1: train (N,) and val (M,) are ids; returns a float, in nats."""
    counts = torch.bincount(train, minlength=V) + 1
    probabilities = counts / counts.sum()  # (V,)
    return -probabilities[val].log().mean().item()


def encode_bytes(text):
    """0.2: a str; returns a list of ids from 0 to 255."""
    return list(text.encode("utf-8"))
