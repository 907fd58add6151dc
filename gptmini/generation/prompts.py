"""What goes into generation, read once: token ids in any of their forms, and numbers."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gptmini.errors import UserError
from gptmini.generation.sampling import LogitsHook, Sampling
from gptmini.model import GPT


def read_prompts(tokens: Any) -> list[list[int]]:
    """The prompts as lists of ids: of a tensor (B, T) or (T,), a list of lists, or one list of ids.

    >>> read_prompts(torch.tensor([1, 2])), read_prompts([[1, 2], [3]])
    ([[1, 2]], [[1, 2], [3]])
    """
    try:
        rows = [tokens] if is_one_row(tokens) else tokens
        # Rows may be lists, arrays or tensors.
        plain = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
        return [[_whole(token) for token in row] for row in plain]
    except TypeError:
        given = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens)
        raise UserError(
            f"tokens are {given}, but must be int64 (B, T) or (T,), or a list of rows of token ids"
        ) from None


def is_one_row(tokens: Any) -> bool:
    """Whether the tokens are one text without a batch around it."""
    if isinstance(tokens, Tensor):
        return tokens.dim() == 1
    return len(tokens) > 0 and not hasattr(tokens[0], "__len__")


def join(tokens: Any, prompts: list[list[int]], added: list[list[int]], stop_token: int | None) -> Any:
    """The prompts with what was added to each, in the form of `tokens`, from which they were read."""
    if isinstance(tokens, Tensor):
        n = max(map(len, added), default=0)  # shorter rows are filled up
        filled = [row + [stop_token or 0] * (n - len(row)) for row in added]
        new = torch.tensor(filled, dtype=torch.int64, device=tokens.device).view(len(added), n)  # (B, n)
        return torch.cat((tokens, new.flatten() if tokens.dim() == 1 else new), dim=-1)  # (B, T + n)
    rows = [[*prompt, *row] for prompt, row in zip(prompts, added, strict=True)]
    return rows[0] if is_one_row(tokens) else rows


def check_arguments(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    max_new_tokens: int,
    logits_hook: LogitsHook | None,
) -> None:
    """Raise UserError for what no text can be generated with, such as a prompt longer than the context."""
    vocab_size, context_length = model.config.vocab_size, model.config.context_length
    whole_number("max_new_tokens", max_new_tokens)
    if not (logits_hook is None or callable(logits_hook)):
        raise UserError(f"logits_hook = {logits_hook!r:.60}: must be a function of the logits and the texts")
    if sampling.no_repeat_token is not None:
        whole_number("no_repeat_token", sampling.no_repeat_token, vocab_size)
    for prompt in prompts:
        if not prompt:
            raise UserError("a prompt holds no tokens: start from end of text, or from any one token")
        if len(prompt) > context_length:
            raise UserError(
                f"the prompt has {len(prompt)} tokens, but the model's context is {context_length}: shorten "
                "it, or keep its end only (--truncate-prompt left; truncate_prompt=True)"
            )
        for token in (min(prompt), max(prompt)):
            whole_number("token id", token, vocab_size)


def whole_number(name: str, value: Any, vocab_size: int | None = None) -> int:
    """The value, of Python's or numpy's types, as an int; UserError where it is none or out of range."""
    try:
        if (number := _whole(value)) >= 0 and (vocab_size is None or number < vocab_size):
            return number
    except TypeError:
        pass
    vocabulary = f" below the model's vocab_size of {vocab_size}" if vocab_size else " of at least 0"
    raise UserError(f"{name} = {value} must be a whole number{vocabulary}")


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)  # of an int, or one of numpy's integer types
