"""Tokens to batches: inputs and targets (B, T), as a function of the step.

`WindowSampler` says which windows of the training stream each step sees, computed from (seed, step) alone:
there is no state that a resumed run could get wrong. `validation_batches` reads a split from end to end.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gptmini.data.shuffle import derive_key, permute
from gptmini.data.token_files import TokenStream


class WindowSampler:
    """Which windows of a token stream each training step sees: shuffled epochs without replacement.

    An epoch visits every window of context_length tokens once, in an order that depends on (seed, epoch)
    alone. Nothing is stored, so memory does not grow with the corpus.
    """

    def __init__(self, tokens: TokenStream, context_length: int, seed: int) -> None:
        """`tokens` (N,) must hold at least one window of context_length tokens and its last target."""
        assert len(tokens) > context_length
        self.tokens, self.context_length, self.seed = tokens, context_length, seed
        # Whole windows that fit wherever the first begins; the tokens left over vary with the epoch.
        self.per_epoch = max(1, (len(tokens) - context_length) // context_length)

    def starts(self, step: int, batch_size: int) -> np.ndarray:
        """Where the windows of step 0, 1, ... begin in the stream, int64 (batch_size,)."""
        # Windows are numbered from 0 through all epochs; step k takes those from k * batch_size on.
        indices = step * batch_size + np.arange(batch_size)
        epochs = indices // self.per_epoch  # a batch may reach into the next epoch
        return np.concatenate(
            [
                self._starts_in_epoch(epoch, indices[epochs == epoch] % self.per_epoch)
                for epoch in range(epochs[0], epochs[-1] + 1)
            ]
        )

    def _starts_in_epoch(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        """Where the windows with these numbers in an epoch begin."""
        # Windows lie side by side. The first begins at another offset in each epoch, so that a token is not
        # always seen at the same position.
        slack = len(self.tokens) - 1 - self.per_epoch * self.context_length
        offset = derive_key(self.seed, epoch) % min(self.context_length, slack + 1)
        return offset + self.context_length * permute(indices, self.per_epoch, (self.seed, epoch))

    def batch(self, starts: np.ndarray) -> tuple[Tensor, Tensor]:
        """The windows at `starts`: inputs and targets, int64 (B, T), each target the token after its input.

        >>> windows = WindowSampler(np.arange(10, 20), context_length=3, seed=0)
        >>> windows.batch(np.array([0, 3]))  # neighbours: the last target is the next one's first input
        (tensor([[10, 11, 12],
                [13, 14, 15]]), tensor([[11, 12, 13],
                [14, 15, 16]]))
        """
        return stack_windows(self.tokens, starts, self.context_length)


def stack_windows(tokens: TokenStream, starts: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 (B, length), of the windows that begin at `starts`."""
    # One token more than the model sees: the last position needs a target too.
    windows = [torch.from_numpy(tokens[s : s + length + 1].astype(np.int64)) for s in starts]
    # Equally long windows, stacked as rows: B of (T + 1,) make one (B, T + 1).
    rows = torch.stack(windows)
    # Targets are the inputs shifted by one: at each position the model predicts the next token.
    return rows[:, :-1], rows[:, 1:]


def validation_batches(
    tokens: TokenStream, context_length: int, batch_size: int, max_tokens: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """A full pass over a split in a fixed order: each token but the first is a target exactly once.

    Yields inputs and targets, int64 (B, T); the last, shorter window comes as a batch of its own.
    `max_tokens` ends the pass after about that many targets.
    """
    T = context_length
    targets = len(tokens) - 1 if max_tokens is None else min(max_tokens, len(tokens) - 1)
    full = targets // T  # windows of T tokens
    for first in range(0, full, batch_size):
        yield stack_windows(tokens, T * np.arange(first, min(first + batch_size, full)), T)
    if rest := targets % T:
        yield stack_windows(tokens, np.array([T * full]), rest)
