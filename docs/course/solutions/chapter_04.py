"""Solutions of chapter 4."""

import torch


def to_batch(windows):
    """4.1: a list of B tensors (T + 1,); returns inputs and targets, (B, T) each."""
    rows = torch.stack(windows)
    return rows[:, :-1], rows[:, 1:]


def all_windows(ids, T):
    """4.2: ids is (N,); returns (N - T, T + 1)."""
    return ids[torch.arange(len(ids) - T)[:, None] + torch.arange(T + 1)]  # (N - T, 1) + (T + 1,)


def cross_entropy(logits, targets):
    """4.3: logits is (B, T, V), targets int64 (B, T); returns a scalar."""
    log_p = logits.log_softmax(dim=-1)
    return -log_p.gather(-1, targets[..., None]).mean()  # of each V the target's
