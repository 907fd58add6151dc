"""A look inside: attention, what each layer would already say, surprisal, nearest tokens.

All of it is recorded from outside, by hooks: the model computes what it always does.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptmini.errors import UserError
from gptmini.generation.attention import record_attention
from gptmini.generation.kv_cache import KVCache
from gptmini.model import GPT

MAX_TOKENS = 128  # of a text at most: the grid of attention maps grows with their square
ALTERNATIVES = 20
LENS_TOKENS = 5
_CHUNK = 128  # positions whose logits (.., V) are in memory at once


class Inspection(NamedTuple):
    """What one forward pass over T tokens shows, recorded."""

    ids: list[int]  # the last MAX_TOKENS, or as many as the context holds
    surprisal: list[float | None]  # bits, -log2 p; None for the first token
    lens: list[list[list[tuple[int, float]]]]  # [0 .. n_layer][T] -> likeliest tokens, with probability
    attention: Tensor  # (n_layer, H, T, T); each row, of a query, sums to 1


@torch.inference_mode()
def inspect(model: GPT, ids: Sequence[int]) -> Inspection:
    """Look inside a forward pass over the last tokens of a text, from position 0 on."""
    ids = check_ids(model, ids)[-MAX_TOKENS:]
    if not ids:
        raise UserError("there is no text to look inside: give at least one token")
    device = model.position_embedding.weight.device
    with record_attention(model) as attention, record_residual_stream(model) as residuals:
        model.hidden_states(torch.tensor([ids], device=device))
    # The logit lens: the output layer reads the residual stream as it stands after each block.
    lens, log_probabilities = [], torch.empty(0)
    for residual in residuals:  # n_layer + 1 of (1, T, C)
        log_probabilities = model.lm_head(model.ln_f(residual)).float().log_softmax(dim=-1)[0]  # (T, V)
        lens.append([top_tokens(row, LENS_TOKENS) for row in log_probabilities])
    targets = torch.tensor(ids[1:], dtype=torch.int64, device=device)
    nats = log_probabilities[:-1].gather(-1, targets[:, None]).flatten()  # (T - 1,)
    surprisal = [None, *(-nats / math.log(2)).tolist()]
    return Inspection(list(ids), surprisal, lens, torch.cat(attention).float().cpu())


@contextmanager
def record_residual_stream(model: GPT) -> Iterator[list[Tensor]]:
    """Yields a list that a forward pass extends by the residual stream (B, T, C), n_layer + 1 times."""
    stream: list[Tensor] = []

    def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
        stream.append(output)

    with ExitStack() as hooks:
        for module in (model.dropout, *model.blocks):  # dropout takes the embedded tokens
            hooks.callback(module.register_forward_hook(record).remove)
        yield stream


@torch.inference_mode()
def next_tokens(model: GPT, ids: Sequence[int]) -> list[tuple[int, float]]:
    """The likeliest tokens after a text, with their probabilities; of a long text, the end counts.

    Of a text that grew since the last call, only what is new goes through the model.
    """
    ids, device = check_ids(model, ids), model.position_embedding.weight.device
    last, cache = _last_texts.get(model) or ([], KVCache(model, 1, model.config.context_length))
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(last, ids[:-1], strict=False))
    known = len(list(shared))
    cache.lengths = [known]
    _last_texts[model] = ids[:known], cache
    hidden = model.hidden_states(torch.tensor([ids[known:]], device=device), cache)[:, -1]  # (1, C)
    _last_texts[model] = ids, cache
    return top_tokens(model.lm_head(hidden).float().log_softmax(dim=-1)[0])


_last_texts: WeakKeyDictionary[GPT, tuple[list[int], KVCache]] = WeakKeyDictionary()


@torch.inference_mode()
def token_log_probabilities(model: GPT, ids: Sequence[int]) -> Iterator[Tensor]:
    """What the model gives every token at the second position, the third, ...: (V,) each, in nats."""
    if len(ids) < 2:
        return
    device = model.position_embedding.weight.device
    hidden = model.hidden_states(torch.tensor([ids[:-1]], device=device))[0]  # (T - 1, C)
    for start in range(0, len(hidden), _CHUNK):
        yield from model.lm_head(hidden[start : start + _CHUNK]).float().log_softmax(dim=-1)


@torch.inference_mode()
def neighbors(model: GPT, token: int) -> list[tuple[int, float]]:
    """The tokens whose embeddings point most nearly where this one's does, with the cosine."""
    (token,) = check_ids(model, [token])
    table = model.token_embedding.weight.float()  # (V, C)
    cosines = F.cosine_similarity(table, table[token], dim=-1)  # (V,)
    cosines[token] = -2.0  # not itself
    values, tokens = cosines.topk(min(ALTERNATIVES, len(table) - 1))
    return list(zip(tokens.tolist(), values.tolist(), strict=True))


def top_tokens(log_probabilities: Tensor, count: int = ALTERNATIVES) -> list[tuple[int, float]]:
    """The likeliest tokens of (V,), with their probabilities."""
    values, tokens = log_probabilities.topk(min(count, log_probabilities.shape[-1]))
    return list(zip(tokens.tolist(), values.exp().tolist(), strict=True))


def check_ids(model: GPT, ids: Sequence[int]) -> list[int]:
    """The end of a text that the model's context holds; UserError for an id outside the vocabulary."""
    if wrong := [i for i in ids if not 0 <= i < model.config.vocab_size]:
        raise UserError(f"token id {wrong[0]} is outside the vocabulary of {model.config.vocab_size}")
    return list(ids[-model.config.context_length :])
