"""A look inside: which positions each position attended to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from gptmini.checkpoint.gpt2_directory import unwrap
from gptmini.model import GPT, CausalSelfAttention, eager

Attend = Callable[..., Tensor]


@contextmanager
def record_attention(model: GPT) -> Iterator[list[Tensor]]:
    """Yields a list that every forward pass in the block extends by one tensor per layer, (B, H, T, S).

    `weights[layer][b, h, t, s]` is how much position t of row b takes of the value at s, in head h; each row
    sums to 1. The logits stay the same bits. With `generate` a forward pass is a prompt or a new token, for
    which T is 1.

    >>> from gptmini.config import GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=9, n_layer=2, n_head=1, n_embd=4, context_length=8))
    >>> with record_attention(model) as weights:
    ...     logits = model(torch.tensor([[1, 2, 3]]))
    >>> len(weights), weights[0].shape
    (2, torch.Size([1, 1, 3, 3]))
    >>> weights[0][0, 0, 0]  # the first position has only itself to attend to
    tensor([1., 0., 0.])
    """
    layers = [module for module in unwrap(model).modules() if isinstance(module, CausalSelfAttention)]
    attends = [layer.attend for layer in layers]
    weights: list[Tensor] = []

    recording = True  # a copy of the model made in the block keeps the recorder: it then only attends

    def recorder(attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
        if not recording:
            return attend(q, k, v, mask, dropout)
        with torch.no_grad():
            # attention over the identity matrix as values gives the weights themselves
            identity = torch.eye(k.shape[-2], dtype=k.dtype, device=k.device).expand(*k.shape[:2], -1, -1)
            weights.append(eager(q, k, identity, mask))
        return attend(q, k, v, mask, dropout)

    try:
        for layer in layers:
            layer.attend = partial(recorder, layer.attend)
        yield weights
    finally:
        recording = False
        for layer, attend in zip(layers, attends, strict=True):
            layer.attend = attend
