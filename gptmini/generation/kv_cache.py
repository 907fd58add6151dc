"""Keys and values of past tokens, kept so that a new token costs one position and not the whole text.

A cached step computes only the last rows of attention: queries of the new positions against the keys of
everything so far, under the last rows of the causal mask. Nothing else in the model changes.

Rows of a batch may differ in length, without padding and without a mask of their own: each key is stored at
its token's position, so a shorter row has nothing yet where a longer one goes on, and each row's line of
the causal mask hides whatever lies past its end.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gptmini.model import GPT


class KVCache:
    """The past of `batch_size` sequences: a `LayerCache` per block, and how long each row is.

    Memory is reserved once, 2 n_layer B H capacity D numbers, because growing by `torch.cat` would copy
    the whole past for every token. `capacity` is the longest row that will be needed, in tokens.
    """

    def __init__(self, model: "GPT", batch_size: int, capacity: int) -> None:
        config, weight = model.config, model.position_embedding.weight
        shape = (batch_size, config.n_head, capacity, config.head_dim)
        self.lengths = [0] * batch_size
        # zeros: hidden positions get weight 0, but 0 times a NaN left in fresh memory would be NaN
        self.layers = [
            LayerCache(self, weight.new_zeros(shape), weight.new_zeros(shape)) for _ in range(config.n_layer)
        ]

    @property
    def length(self) -> int:
        """Tokens in the longest row."""
        return max(self.lengths)

    def advance(self, T: int) -> Tensor:
        """Make every row T tokens longer; returns the new positions, (T,) where rows are equal, else (B, T).

        Each layer then appends the keys and values of these positions.
        """
        device = self.layers[0].k.device
        starts = sorted(set(self.lengths))
        if len(starts) == 1:
            positions = torch.arange(starts[0], starts[0] + T, device=device)  # (T,)
        else:
            offsets = torch.arange(T, device=device)
            positions = torch.tensor(self.lengths, device=device)[:, None] + offsets  # (B, T)
        self.positions = positions
        self.lengths = [length + T for length in self.lengths]
        return positions

    def mask(self, causal_mask: Tensor) -> Tensor:
        """The rows of the causal mask for the positions of the last `advance`: (T, S) or (B, 1, T, S)."""
        S, T = self.length, self.positions.shape[-1]
        if self.positions.dim() == 1:
            return causal_mask[S - T : S, :S]
        return causal_mask[self.positions, :S].unsqueeze(1)  # the 1 broadcasts over heads

    def rows(self, start: int, stop: int) -> "KVCache":
        """An empty cache for rows start to stop that writes into this one's memory."""
        part = object.__new__(KVCache)
        part.lengths = [0] * (stop - start)
        part.layers = [LayerCache(part, layer.k[start:stop], layer.v[start:stop]) for layer in self.layers]
        return part

    def select(self, rows: list[int]) -> "KVCache":
        """A cache of these rows alone."""
        part = object.__new__(KVCache)
        part.lengths = [self.lengths[row] for row in rows]
        part.layers = [LayerCache(part, layer.k[rows], layer.v[rows]) for layer in self.layers]
        return part


class LayerCache:
    """One block's keys and values, each (B, H, capacity, D)."""

    def __init__(self, cache: KVCache, k: Tensor, v: Tensor) -> None:
        self.cache, self.k, self.v = cache, k, v

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B, H, T, D) at the cache's new positions; returns all so far, (B, H, S, D)."""
        S, T = self.cache.length, k.shape[2]
        positions = self.cache.positions
        if positions.dim() == 1:
            self.k.narrow(2, S - T, T).copy_(k)
            self.v.narrow(2, S - T, T).copy_(v)
        else:
            index = positions[:, None, :, None].expand_as(k)  # (B, 1, T, 1) -> (B, H, T, D)
            self.k.scatter_(2, index, k)
            self.v.scatter_(2, index, v)
        return self.k.narrow(2, 0, S), self.v.narrow(2, 0, S)
