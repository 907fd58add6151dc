"""Keys and values of past tokens, kept so that a new token costs one position and not the whole text.

A cached step computes only the last rows of attention: queries of the new positions against the keys of
everything so far. Rows of a batch may differ in length, without padding: each key is stored at its token's
position, and a row's mask hides what lies past its end.
"""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from gptmini.model import GPT, causal_mask


class KVCache:
    """The past of `batch_size` sequences: keys and values of each layer, and how long each row is.

    Memory is reserved once, 2 n_layer B H capacity D numbers, because growing by `torch.cat` would copy
    the whole past for every token. `capacity` is the longest row that will be needed, in tokens.
    """

    def __init__(self, model: GPT, batch_size: int, capacity: int) -> None:
        config, weight = model.config, model.position_embedding.weight
        shape = (batch_size, config.n_head, capacity, config.head_dim)
        self.lengths = [0] * batch_size
        # zeros: hidden positions get weight 0, but 0 times a NaN left in fresh memory would be NaN
        self.keys = [weight.new_zeros(shape) for _ in range(config.n_layer)]
        self.values = [weight.new_zeros(shape) for _ in range(config.n_layer)]

    @property
    def length(self) -> int:
        """Tokens in the longest row."""
        return max(self.lengths)

    def advance(self, T: int) -> tuple[Tensor, Tensor]:
        """Make every row T tokens longer; returns the new positions and their rows of the causal mask.

        They are (T,) and (T, S) where rows are equal in length, else (B, T) and (B, 1, T, S). Each layer then
        appends the keys and values of these positions.
        """
        device, starts = self.keys[0].device, self.lengths
        self.lengths = [length + T for length in starts]
        S = self.length
        if min(starts) == max(starts):
            self.positions = torch.arange(S - T, S, device=device)  # (T,)
            return self.positions, causal_mask(T, S, device)
        new = torch.arange(T, device=device)
        self.positions = torch.tensor(starts, device=device)[:, None] + new  # (B, 1) + (T,) is (B, T)
        mask = torch.arange(S, device=device) <= self.positions[..., None]  # (S,) <= (B, T, 1) is (B, T, S)
        return self.positions, mask.unsqueeze(1)  # the 1 broadcasts over heads

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's k and v (B, H, T, D) at the new positions; returns all so far, (B, H, S, D)."""
        S, T = self.length, k.shape[2]
        keys, values = self.keys[layer], self.values[layer]
        if self.positions.dim() == 1:
            keys.narrow(2, S - T, T).copy_(k)
            values.narrow(2, S - T, T).copy_(v)
        else:
            index = self.positions[:, None, :, None].expand_as(k)  # (B, 1, T, 1) -> (B, H, T, D)
            keys.scatter_(2, index, k)
            values.scatter_(2, index, v)
        return keys.narrow(2, 0, S), values.narrow(2, 0, S)

    def select(self, rows: slice | list[int]) -> "KVCache":
        """A cache of these rows alone: a slice of them shares this one's memory, a list is copied."""
        part = copy.copy(self)
        part.lengths = torch.tensor(self.lengths)[rows].tolist()
        part.keys = [k[rows] for k in self.keys]
        part.values = [v[rows] for v in self.values]
        return part


# One token more for each row: from the rows' last tokens and the cache of all before them to logits (B, V).
Step: TypeAlias = Callable[[Sequence[int], KVCache], Tensor]


def last_logits(
    model: GPT, windows: Sequence[Sequence[int]], cache: KVCache | None, step: Step | None
) -> Tensor:
    """The logits (B, V) after the last token of each window; `step` computes them from token and cache."""
    device = model.position_embedding.weight.device
    if cache is None:
        parts = [torch.tensor(windows[a:b], device=device) for a, b in _runs(windows)]
        return model.lm_head(torch.cat([model.hidden_states(part)[:, -1] for part in parts]))
    # The cache of a row should hold its window except the last token. At the start, and after a jump of the
    # window, it does not: compute keys and values of those rows anew.
    for a, b in _runs(windows):
        past = len(windows[a]) - 1
        if cache.lengths[a:b] != [past] * (b - a):
            part = cache.select(slice(a, b))
            part.lengths = [0] * (b - a)
            if past:
                model.hidden_states(torch.tensor(windows[a:b], device=device)[:, :-1], part)
            cache.lengths[a:b] = part.lengths
    # Then one new token for each row, whatever the lengths.
    last = [window[-1] for window in windows]
    if step is not None:
        return step(last, cache)
    hidden = model.hidden_states(torch.tensor(last, device=device)[:, None], cache)  # (B, 1, C)
    return model.lm_head(hidden[:, -1])


def _runs(windows: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Neighbouring windows of equal length, as (start, stop): they go through the model together."""
    starts = [i for i in range(len(windows)) if i == 0 or len(windows[i]) != len(windows[i - 1])]
    return list(pairwise([*starts, len(windows)]))
