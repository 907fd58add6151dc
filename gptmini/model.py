"""GPT-2, from token ids to logits: attention, MLP, Block, GPT.

The model of "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019), exactly: learned
absolute positions, LayerNorm before each part, tanh GELU, output weights tied to the token embedding. It
knows no device, file, optimizer or progress bar; read it top to bottom.

Letters in shapes, the same everywhere:
    B  batch            T  tokens in the sequence      S  tokens looked at (T, or more with a cache)
    C  width, n_embd    H  heads                       D  width of a head, C / H
    V  vocabulary
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptmini.config import GPTConfig

if TYPE_CHECKING:
    from gptmini.generation.kv_cache import KVCache, LayerCache


def causal_mask(context_length: int) -> Tensor:
    """Which positions each position may look at, (context_length, context_length) bool: itself and the past.

    >>> causal_mask(3)
    tensor([[ True, False, False],
            [ True,  True, False],
            [ True,  True,  True]])
    """
    return torch.tril(torch.ones(context_length, context_length, dtype=torch.bool))


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention as it is taught: softmax(q k^T / sqrt(D)) v, with the future closed by masked_fill_.

    q is (B, H, T, D); k and v are (B, H, S, D); mask is bool, True where a query may look, and broadcasts
    over batch and heads: (T, S) stands for (B, H, T, S). Returns (B, H, T, D).

    Closed scores become -inf, so softmax gives them exactly 0. With equal scores each position averages
    itself and its past:

    >>> zeros, values = torch.zeros(1, 1, 3, 1), torch.tensor([2.0, 4.0, 9.0]).view(1, 1, 3, 1)
    >>> eager(zeros, zeros, values, causal_mask(3)).flatten()
    tensor([2., 3., 5.])
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, T, S)
    scores.detach().masked_fill_(~mask, -math.inf)  # unseen by autograd: closed scores get gradient 0 anyway
    weights = F.dropout(scores.softmax(dim=-1), dropout)  # (B, H, T, S), rows sum to 1
    return weights @ v  # (B, H, T, D)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """The same as `eager` in one fused kernel, which never stores the (T, S) scores."""
    if q.shape[-2] == k.shape[-2]:  # the whole triangle: kernels that know it skip the closed half
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    if q.shape[-2] == 1 and mask.dim() == 2:  # one new token looks at all of the past
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]] = {
    "eager": eager,
    "sdpa": sdpa,
}


class CausalSelfAttention(nn.Module):
    """Every position gathers values from itself and earlier positions, H times in parallel."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.attend = ATTENTION[config.attention]
        self.c_attn = nn.Linear(
            config.n_embd, 3 * config.n_embd, bias=config.bias
        )  # q, k and v in one product
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, mask: Tensor, cache: "LayerCache | None" = None) -> Tensor:
        """Mix (B, T, C) across positions; returns (B, T, C)."""
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=-1)  # 3 x (B, T, C)
        q = q.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        k = k.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        v = v.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, H, S, D)
        dropout = self.dropout if self.training else 0.0
        y = self.attend(q, k, v, mask, dropout)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)  # (B, T, C)
        return F.dropout(self.c_proj(y), dropout)


class MLP(nn.Module):
    """Every position thinks for itself: widen four times, bend, narrow.

    A Linear layer holds a weight (out, in) and a bias (out,), and maps the last dimension of any input:

    >>> linear, x = nn.Linear(2, 3), torch.ones(5, 4, 2)
    >>> linear(x).shape
    torch.Size([5, 4, 3])
    >>> torch.allclose(linear(x), x @ linear.weight.T + linear.bias)
    True
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position of (B, T, C) on its own; returns (B, T, C)."""
        x = F.gelu(self.c_fc(x), approximate="tanh")  # (B, T, 4C)
        return self.dropout(self.c_proj(x))  # (B, T, C)


class Block(nn.Module):
    """One layer: attention, then MLP, each added to the residual stream it read from."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor, cache: "LayerCache | None" = None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self.attn(self.ln_1(x), mask, cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2: `GPT(config)(tokens)` turns int64 ids (B, T) into logits (B, T, V).

    Position t's logits score every token of the vocabulary as the one at t + 1.

    >>> model = GPT(GPTConfig(vocab_size=65, n_layer=2, n_head=2, n_embd=32, context_length=16))
    >>> model(torch.zeros(4, 16, dtype=torch.int64)).shape
    torch.Size([4, 16, 65])
    """

    causal_mask: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.context_length, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.token_embedding.weight  # tied: reading and writing share one table
        self.register_buffer("causal_mask", causal_mask(config.context_length), persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """GPT-2's rule: normal(0, 0.02) everywhere, and 0.02 / sqrt(2 n_layer) where a layer writes to the
        residual stream, so that its variance does not grow with depth; biases start at zero."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)  # LayerNorm; biases
            elif name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer))
            else:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, cache: "KVCache | None" = None) -> Tensor:
        """Logits (B, T, V) for ids (B, T); raises ValueError where T is longer than the context."""
        return self.lm_head(self.hidden_states(tokens, cache))  # (B, T, V)

    def hidden_states(self, tokens: Tensor, cache: "KVCache | None" = None) -> Tensor:
        """The residual stream (B, T, C) that `lm_head` turns into logits.

        With a cache, `tokens` are the ones that follow what it holds, and it takes up their keys and values.
        """
        T = tokens.shape[1]
        if cache is None:
            self._check_length(T)
            positions = torch.arange(T, device=tokens.device)  # (T,): 0, 1, 2, ...
            mask = self.causal_mask[:T, :T]  # (T, T)
        else:
            self._check_length(cache.length + T)
            positions = cache.advance(T)  # (T,), or (B, T) where rows differ in length
            mask = cache.mask(self.causal_mask)  # the rows of these positions: (T, S) or (B, 1, T, S)
        # Broadcasting: each of the B rows of (B, T, C) gets the same (T, C) positions added.
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))  # (B, T, C)
        for i, block in enumerate(self.blocks):
            x = block(x, mask, None if cache is None else cache.layers[i])  # (B, T, C)
        return self.ln_f(x)

    def _check_length(self, length: int) -> None:
        if length > self.config.context_length:
            raise ValueError(
                f"{length} tokens do not fit the model's context_length of {self.config.context_length}: "
                "crop them to the last ones"
            )
