"""GPT-2, from token ids to logits: attention, MLP, Block, GPT. Read it top to bottom.

The model of "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019), exactly: learned
absolute positions, LayerNorm before each part, tanh GELU, output weights tied to the token embedding.

Letters in shapes, the same everywhere:
    B  batch            T  tokens in the sequence      S  keys attended to (T, or more with a cache)
    C  width, n_embd    H  heads                       D  width of a head, C / H           V  vocabulary
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptmini.config import GPTConfig
from gptmini.errors import UserError


def causal_mask(T: int, S: int, device: torch.device | None = None) -> Tensor:
    """Which of S keys the last T positions may attend to, (T, S) bool: each to itself and its past.

    >>> causal_mask(3, 3)
    tensor([[ True, False, False],
            [ True,  True, False],
            [ True,  True,  True]])
    """
    # The T queries are the last T of the S keys, so the triangle starts S - T columns further right.
    return torch.tril(torch.ones(T, S, dtype=torch.bool, device=device), diagonal=S - T)


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention as it is taught: softmax(q k^T / sqrt(D)) v, with the future masked out by masked_fill_.

    q is (B, H, T, D); k and v are (B, H, S, D); mask is bool, True where a query may attend, and broadcasts
    over batch and heads: (T, S) stands for (B, H, T, S). Returns (B, H, T, D).

    With equal scores each position averages the values of itself and its past:

    >>> zeros, values = torch.zeros(1, 1, 3, 1), torch.tensor([2.0, 4.0, 9.0]).view(1, 1, 3, 1)
    >>> eager(zeros, zeros, values, causal_mask(3, 3)).flatten()
    tensor([2., 3., 5.])
    """
    # A score q.k is a sum of D products. Dividing by sqrt(D) (here on q, which is smaller) keeps its variance
    # near 1 for every D; larger scores would make softmax put all weight on one key, with gradients near 0.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, T, S)
    # Fill where a query may not attend: softmax turns -inf into a weight of exactly 0.
    scores.masked_fill_(~mask, -math.inf)  # (T, S) broadcasts to (B, H, T, S)
    weights = F.dropout(scores.softmax(dim=-1), dropout)  # (B, H, T, S), rows sum to 1 before dropout
    return weights @ v  # (B, H, T, D)


def additive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """`eager` bit for bit, but faster to train: the backward pass of an addition copies no (T, S) tensor."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, T, S)
    scores += torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -math.inf)  # 0 or -inf
    return F.dropout(scores.softmax(dim=-1), dropout) @ v  # (B, H, T, D)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """`eager` up to rounding, in one fused kernel that never stores the (T, S) scores."""
    if q.shape[-2] == k.shape[-2]:  # is_causal is the same triangle as the mask, and kernels skip half of it
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    if q.shape[-2] == 1 and mask.dim() == 2:  # one new token attends to every key: nothing is masked out
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


# `model.attention` in the config: eager, the default, is the one to read; additive trains fastest on a CPU;
# most of configs/ take that one; sdpa is for long contexts, GPUs and decoding. A test holds them equal.
ATTENTION = {"eager": eager, "additive": additive, "sdpa": sdpa}


class Cache(Protocol):
    """What generation may hand to the model: a store for keys and values of past tokens, so that they are not
    computed again. Training passes none; `generation/kv_cache.py` has one."""

    @property
    def length(self) -> int:
        """Tokens held so far, in the longest row."""

    def advance(self, T: int) -> tuple[Tensor, Tensor]:
        """Make room for T more; returns their positions, (T,) or (B, T), and mask, (T, S) or (B, 1, T, S)."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's k and v (B, H, T, D) at these positions; returns all it holds, (B, H, S, D)."""


class CausalSelfAttention(nn.Module):
    """Every position gathers values from itself and earlier positions, H times in parallel."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.layer = layer  # its number, by which a cache stores its keys and values
        self.dropout = config.dropout
        self.attend = ATTENTION[config.attention]
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # 3: q, k and v
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        """Mix (B, T, C) across positions; returns (B, T, C)."""
        B, T, C = x.shape
        # For each position, in one product: the query (what it looks for), the key (what it is found by) and
        # the value (what it passes on to those that find it).
        qkv = self.c_attn(x).split(C, dim=-1)  # 3 x (B, T, C)
        # Each head attends on its own: (B, T, C) -> (B, T, H, D) -> (B, H, T, D), with C = H * D.
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in qkv)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D)
        dropout = self.dropout if self.training else 0.0
        y = self.attend(q, k, v, mask, dropout)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return F.dropout(self.c_proj(y), dropout)  # c_proj mixes what the heads found, (B, T, C)


class MLP(nn.Module):
    """Position-wise feed-forward: expand 4x, GELU, project back. (c_fc and c_proj are GPT-2's own names.)

    A Linear layer holds a weight (out, in) and a bias (out,), and maps the last dimension of any input:

    >>> linear, x = nn.Linear(2, 3), torch.ones(5, 4, 2)
    >>> torch.allclose(linear(x), x @ linear.weight.T + linear.bias)  # (5, 4, 3)
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
    """One layer: attention, then MLP."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        """Add attention and MLP to the residual stream (B, T, C)."""
        # The residual stream is the vector at each position that all layers add to. An addition passes its
        # gradient on unchanged, so deep models train. LayerNorm rescales what is read: mean 0, variance 1.
        x = x + self.attn(self.ln_1(x), mask, cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2: `GPT(config)(tokens)` turns int64 ids (B, T) into logits (B, T, V).

    Position t's logits score every token of the vocabulary as the one at t + 1.

    >>> model = GPT(GPTConfig(vocab_size=65, n_layer=2, n_head=2, n_embd=32, context_length=16))
    >>> model(torch.zeros(4, 16, dtype=torch.int64)).shape
    torch.Size([4, 16, 65])
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        if not isinstance(config, GPTConfig):
            raise UserError(f"GPT takes a GPTConfig, GPT(GPTConfig(...)), not {type(config).__name__}")
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.context_length, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.token_embedding.weight  # tied: one table for input and output
        self.init_weights()

    def init_weights(self) -> None:
        """GPT-2's rule: normal(0, 0.02), and 0.02 / sqrt(2 n_layer) for the 2 n_layer projections that add to
        the residual stream, so that its variance does not grow with depth; biases start at zero."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)  # LayerNorm; biases
            elif name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer))
            else:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) for ids (B, T); raises UserError where T is 0 or longer than the context."""
        return self.lm_head(self.hidden_states(tokens, cache))  # (B, T, V)

    def hidden_states(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """The residual stream (B, T, C) that `lm_head` turns into logits.

        With a cache, `tokens` are the ones that follow what it holds, and it stores their keys and values.

        Shapes are broadcast from the right, so one row of positions is added to every row of a batch:

        >>> torch.tensor([[10, 20, 30], [40, 50, 60]]) + torch.arange(3)  # (2, 3) + (3,)
        tensor([[10, 21, 32],
                [40, 51, 62]])
        """
        self._check(tokens, cache)
        T = tokens.shape[1]
        if cache is None:
            positions, mask = torch.arange(T, device=tokens.device), causal_mask(T, T, tokens.device)
        else:
            positions, mask = cache.advance(T)
        # Attention does not see the order of its keys, so each position 0, 1, ... adds a learned vector.
        x = self.token_embedding(tokens) + self.position_embedding(positions)  # (B, T, C) + (T, C)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, mask, cache)  # (B, T, C)
        return self.ln_f(x)

    def _check(self, tokens: Tensor, cache: Cache | None) -> None:
        """Raise UserError, with what to do, for mistakes that PyTorch would report in its own terms."""
        if not (cache is None or hasattr(cache, "advance")):  # model(x, y), as in nanoGPT
            raise UserError("for a loss: F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())")
        if not isinstance(tokens, Tensor):
            raise UserError(f"tokens are a {type(tokens).__name__}: make them a tensor with torch.tensor")
        if tokens.dtype not in (torch.int64, torch.int32):
            raise UserError(f"tokens are {tokens.dtype}, not int64: call tokens.long()")
        if tokens.dim() != 2:
            raise UserError(f"tokens are {tuple(tokens.shape)}, not (B, T): give one text as tokens[None]")
        if 0 in tokens.shape:
            raise UserError(f"tokens are (B, T) = {tuple(tokens.shape)}: there are none, and one is needed")
        length, limit = tokens.shape[1] + (0 if cache is None else cache.length), self.config.context_length
        if length > limit:
            raise UserError(f"{length} tokens do not fit the model's context_length of {limit}: crop them")
