"""Batches of the token stream, as a function of the step.

`Windows` says which windows of the training stream each step sees, computed from (seed, step) alone: there is
no state that a resumed run could get wrong. The stream itself comes from `preparation.py`.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gptmini.data.prepare import release_pages


class WindowSampler:
    """Which windows of a token stream each training step sees: shuffled epochs without replacement.

    An epoch visits every window of context_length tokens once, in an order that depends on (seed, epoch)
    alone. The windows of each epoch begin at another offset, so that a text's tokens do not stand at the same
    positions each time. Nothing is stored, so memory does not grow with the corpus.
    """

    def __init__(self, tokens: np.ndarray, context_length: int, seed: int) -> None:
        """`tokens` (N,) must hold at least one window of context_length tokens and its last target."""
        assert len(tokens) > context_length
        self.tokens, self.context_length, self.seed = tokens, context_length, seed
        self.per_epoch = max(1, (len(tokens) - context_length) // context_length)

    def starts(self, step: int, batch_size: int) -> np.ndarray:
        """Where the windows of step 0, 1, ... begin in the stream, int64 (batch_size,)."""
        positions = step * batch_size + np.arange(batch_size)
        epochs = positions // self.per_epoch
        return np.concatenate(
            [
                self._in_epoch(epoch, positions[epochs == epoch] % self.per_epoch)
                for epoch in np.unique(epochs)
            ]
        )

    def _in_epoch(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Starts of the windows that come at these positions of an epoch's order."""
        slack = len(self.tokens) - 1 - self.per_epoch * self.context_length
        offset = _key(self.seed, int(epoch)) % min(self.context_length, slack + 1)
        return offset + self.context_length * permute(positions, self.per_epoch, (self.seed, int(epoch)))

    def batch(self, starts: np.ndarray) -> tuple[Tensor, Tensor]:
        """The windows at `starts`: inputs and targets, int64 (B, T), each target the token after its input.

        >>> windows = WindowSampler(np.arange(10, 20), context_length=3, seed=0)
        >>> windows.batch(np.array([0, 4]))
        (tensor([[10, 11, 12],
                [14, 15, 16]]), tensor([[11, 12, 13],
                [15, 16, 17]]))
        """
        T = self.context_length
        windows = [torch.from_numpy(self.tokens[s : s + T + 1].astype(np.int64)) for s in starts]
        release_pages(self.tokens)
        batch = torch.stack(windows)  # (B, T + 1): equally long rows under one another
        return batch[:, :-1], batch[:, 1:]


def permute(indices: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Where a fixed shuffle of `size` things, chosen by `key`, puts each of `indices`, int64 (n,).

    A Feistel network (Luby & Rackoff, 1988) shuffles the next power of four; an index that lands outside is
    sent on until it lands inside, which keeps it a permutation. So no permutation is ever stored.

    >>> sorted(permute(np.arange(10), 10, (1, 2)).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    rounds = [np.uint64(_key(*key, i)) for i in range(1, 5)]
    result = indices.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        left, right = result[outside] >> np.uint64(half_bits), result[outside] & mask
        for round_key in rounds:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        result[outside] = (left << np.uint64(half_bits)) | right
        outside = result >= size
    return result.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """A hash of each uint64: splitmix64's finalizer (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(*parts: int) -> int:
    """A 64-bit number that depends on all of `parts`."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def validation_batches(
    tokens: np.ndarray, context_length: int, batch_size: int, max_tokens: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """A full pass over a split in a fixed order: each token but the first is a target exactly once.

    Yields inputs and targets, int64 (B, T); the last, shorter window comes as a batch of its own.
    `max_tokens` ends the pass after about that many targets.
    """
    T = context_length
    targets = len(tokens) - 1 if max_tokens is None else min(max_tokens, len(tokens) - 1)
    windows = WindowSampler(tokens, T, seed=0) if targets >= T else None
    full = targets // T
    for first in range(0, full, batch_size):
        assert windows is not None
        yield windows.batch(T * np.arange(first, min(first + batch_size, full)))
    if rest := targets % T:
        last = torch.from_numpy(tokens[full * T : full * T + rest + 1].astype(np.int64)).unsqueeze(0)
        yield last[:, :-1], last[:, 1:]
