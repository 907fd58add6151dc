"""What goes into generation, read once: token ids in any of their forms, and numbers."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gptmini.checkpoint.gpt2_directory import unwrap
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import UserError
from gptmini.model import GPT


def read_prompts(tokens: Tensor | Sequence[Any]) -> list[list[int]]:
    """The prompts as lists of ids: of a tensor (B, T) or (T,), a list of lists, or one list of ids.

    >>> read_prompts(torch.tensor([1, 2])), read_prompts([[1, 2], [3]])
    ([[1, 2]], [[1, 2], [3]])
    """
    if isinstance(tokens, Tensor):
        if tokens.dim() not in (1, 2) or tokens.dtype not in (torch.int64, torch.int32):
            raise UserError(
                f"tokens are {tokens.dtype} {tuple(tokens.shape)}, but must be int64 (B, T) or (T,)"
            )
        return tokens.tolist() if tokens.dim() == 2 else [tokens.tolist()]
    try:
        rows = [tokens] if is_one_row(tokens) else tokens
        if not all(isinstance(row, list) for row in [tokens, *rows]):
            raise TypeError
        return [[_id(token) for token in row] for row in rows]
    except TypeError:
        raise UserError(
            f"prompts are a {type(tokens).__name__}, but must be int64 (B, T) or a list of lists of token ids"
        ) from None


def is_one_row(tokens: Tensor | Sequence[Any]) -> bool:
    """Whether the tokens are one text without a batch around it."""
    if isinstance(tokens, Tensor):
        return tokens.dim() == 1
    return bool(tokens) and not isinstance(tokens[0], list)


def _id(token: Any) -> int:
    if isinstance(token, bool | Tensor):
        raise TypeError
    return operator.index(token)  # int, or one of numpy's integer types


def join(tokens: Any, prompts: list[list[int]], added: list[list[int]], stop_token: int | None) -> Any:
    """The prompts with what was added to each, in the form of `tokens`, from which they were read."""
    if isinstance(tokens, Tensor):
        n = max(map(len, added), default=0)  # shorter rows are filled up
        filled = [row + [stop_token or 0] * (n - len(row)) for row in added]
        new = torch.tensor(filled, dtype=torch.int64, device=tokens.device).view(len(added), n)  # (B, n)
        return torch.cat((tokens, new.flatten() if tokens.dim() == 1 else new), dim=-1)  # (B, T + n)
    rows = [[*prompt, *row] for prompt, row in zip(prompts, added, strict=True)]
    return rows[0] if is_one_row(tokens) else rows


def encode_prompt(model: GPT, tokenizer: Tokenizer, prompt: str, truncate: bool) -> list[int]:
    """The prompt's ids, at least one; with `truncate`, at most the last context_length of them."""
    ids = tokenizer.encode(prompt)
    if not ids:
        if tokenizer.end_of_text is None:
            raise UserError(
                "the prompt is empty, and this tokenizer has no end of text to start from: give one"
            )
        ids = [tokenizer.end_of_text]
    return ids[-unwrap(model).config.context_length :] if truncate else ids


def check_prompts(model: GPT, prompts: Sequence[Sequence[int]]) -> None:
    """Raise UserError for a prompt that is empty, longer than the context, or not of the vocabulary."""
    context_length = model.config.context_length
    for prompt in prompts:
        if not prompt:
            raise UserError("a prompt holds no tokens: start from end of text, or from any one token")
        if len(prompt) > context_length:
            raise UserError(
                f"the prompt has {len(prompt)} tokens, but the model's context is {context_length}: shorten "
                "it, or keep its end only (--truncate-prompt left; truncate_prompt=True)"
            )
        for token in (min(prompt), max(prompt)):
            check_id(model, "token id", token)


def check_id(model: GPT, name: str, token: Any) -> int | None:
    """The id as an int, or None where there is none; UserError where the vocabulary has no such id."""
    vocab_size = model.config.vocab_size
    try:
        if token is None or 0 <= _id(token) < vocab_size:
            return None if token is None else _id(token)
    except TypeError:  # not a whole number
        pass
    raise UserError(f"{name} {token} is outside the model's vocabulary of {vocab_size}")


def whole_number(name: str, value: Any) -> int:
    """The value as an int; UserError where it is not a whole number of at least 0."""
    try:
        if _id(value) >= 0:
            return _id(value)
    except TypeError:
        pass
    raise UserError(f"{name} = {value} must be a whole number of at least 0")
