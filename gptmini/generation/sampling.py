"""From logits to the next token: small functions of the logits, in a fixed order.

Each function takes logits (B, V) and returns logits (B, V) in which some are changed, or masked out: -inf.
They are defined as transformers defines its logits processors, and applied in the same order.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from pydantic import Field

from gptmini.errors import UserError
from gptmini.schema import Section

if TYPE_CHECKING:  # the command line reads the options below before torch is loaded
    from torch import Tensor

LogitsHook: TypeAlias = Callable[["Tensor", Sequence[Sequence[int]]], "Tensor"]


class SamplingOptions(Section):
    """What a user can say about how the next token is chosen."""

    temperature: float = Field(
        1.0, ge=0.0, le=100.0, description="Divides the logits: lower is safer, 0 takes the likeliest token."
    )
    top_k: int | None = Field(
        None, ge=0, description="Choose among the k likeliest tokens; 0 or null: among all."
    )
    top_p: float | None = Field(
        None, gt=0.0, le=1.0, description="Choose among the likeliest tokens that reach this probability."
    )
    min_p: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="Choose among tokens at least this share as likely as the likeliest.",
    )
    repetition_penalty: float = Field(
        1.0, ge=0.01, le=100.0, description="Above 1, makes tokens that the text already holds less likely."
    )


class Sampling(SamplingOptions):
    """How the next token is chosen; raises UserError, one line, where an option is unknown or impossible."""

    foreign_names: ClassVar = {
        "do_sample": "temperature (0 takes the likeliest token)",
        "max_length": "max_new_tokens",
        "max_tokens": "max_new_tokens",
        "eos_token_id": "stop_token of generate",
        "stop_token": "stop (strings), or stop_token of generate",
        "stop": "stop_token, or stop (strings) of generate_text",
        "stop_strings": "stop of generate_text",
        "num_samples": "num_samples of generate_text",
        "num_return_sequences": "num_samples of generate_text",
    }

    seed: int | None = Field(None, ge=0, description="The same seed gives the same tokens.")
    no_repeat_token: int | None = Field(
        None, ge=0, description="A token never chosen twice in a row, such as end of text."
    )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken: at 0, and where dividing by it would overflow."""
        return self.temperature < 1e-5

    def filter(
        self, logits: "Tensor", rows: Sequence[Sequence[int]], seen: "Tensor | None" = None
    ) -> "Tensor":
        """The logits (B, V) that are left to sample from; `rows` are the B texts so far, in token ids.

        `seen` is `seen_tokens` of them, where the caller has it.
        """
        if self.no_repeat_token is not None:
            logits = forbid_repeat(logits, rows, self.no_repeat_token)
        if self.repetition_penalty != 1.0:
            seen = seen_tokens(rows, logits.shape[-1]) if seen is None else seen
            logits = penalize_repetition(logits, seen.to(logits.device), self.repetition_penalty)
        if self.greedy:
            return logits  # the options below never mask out the likeliest token
        logits = logits / self.temperature
        if self.top_k:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None and self.top_p < 1.0:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits

    def choose(
        self,
        logits: "Tensor",
        rows: Sequence[Sequence[int]],
        uniforms: Sequence[float],
        seen: "Tensor | None" = None,
    ) -> "Tensor":
        """Token ids (B,) for logits (B, V); row b is decided by uniforms[b], in [0, 1)."""
        logits = self.filter(logits, rows, seen)
        if not logits.amax(dim=-1).isfinite().all():
            raise UserError(
                "no token is left to sample: a logits_hook, or an output layer, gave NaN or bans every token "
                "that may come next"
            )
        return logits.argmax(dim=-1) if self.greedy else sample(logits, uniforms)


def call_hook(hook: LogitsHook, logits: "Tensor", rows: Sequence[Sequence[int]]) -> "Tensor":
    """What the hook makes of the logits (B, V); UserError where that is no tensor of their shape."""
    given = hook(logits.clone(), [list(row) for row in rows])  # copies: a hook may change them
    if not (hasattr(given, "masked_fill") and given.shape == logits.shape):
        found = f"{type(given).__name__} {tuple(getattr(given, 'shape', ()))}"
        raise UserError(f"logits_hook must return a tensor {tuple(logits.shape)}, not {found}")
    return given


def seen_tokens(rows: Sequence[Sequence[int]], vocab_size: int) -> "Tensor":
    """Which tokens each row holds, bool (B, V)."""
    import torch

    seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool)
    for row, tokens in zip(seen, rows, strict=True):
        row[list(tokens)] = True
    return seen


def row_generators(rows: Sequence[Sequence[int]], seed: int | None) -> list[random.Random]:
    """A random generator per row, seeded with seed + k for the k-th copy of a prompt.

    They are Python's, whose numbers are the same on every device and in every version.
    """
    copies: Counter[tuple[int, ...]] = Counter()
    generators = []
    for row in map(tuple, rows):
        generators.append(random.Random(None if seed is None else seed + copies[row]))
        copies[row] += 1
    return generators


def forbid_repeat(logits: "Tensor", rows: Sequence[Sequence[int]], token: int) -> "Tensor":
    """Mask out `token` in the rows that end with it.

    >>> import torch
    >>> forbid_repeat(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), [[0, 1], [1, 0]], 0)
    tensor([[1., 2.],
            [-inf, 2.]])
    """
    ending = [i for i, row in enumerate(rows) if row[-1] == token]
    if ending:
        logits = logits.clone()
        logits[ending, token] = -math.inf
    return logits


def penalize_repetition(logits: "Tensor", seen: "Tensor", penalty: float) -> "Tensor":
    """Divide the positive and multiply the negative logits of every token already in a row (CTRL, 4.1).

    >>> import torch
    >>> penalize_repetition(torch.tensor([[2.0, 2.0, -2.0]]), torch.tensor([[True, False, True]]), 2.0)
    tensor([[ 1.,  2., -4.]])
    """
    penalized = (logits / penalty).where(logits > 0, logits * penalty)
    return penalized.where(seen, logits)


def keep_top_k(logits: "Tensor", k: int) -> "Tensor":
    """Mask out all but the k largest logits (and any that equal the smallest of them).

    >>> import torch
    >>> keep_top_k(torch.tensor([[1.0, 3.0, 2.0]]), 2)
    tensor([[-inf, 3., 2.]])
    """
    kth = logits.topk(min(k, logits.shape[-1])).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < kth, -math.inf)


def keep_top_p(logits: "Tensor", p: float) -> "Tensor":
    """Mask out the tail: keep the likeliest tokens, as few as have probability p together.

    >>> import torch
    >>> keep_top_p(torch.tensor([[0.1, 0.6, 0.3]]).log(), 0.7).exp()
    tensor([[0.0000, 0.6000, 0.3000]])
    """
    probabilities = logits.softmax(dim=-1)  # (B, V)
    for k in (1024, logits.shape[-1]):  # sorting the whole vocabulary takes ten times as long
        likeliest = probabilities.topk(min(k, logits.shape[-1])).values  # (B, k), falling
        cumulative = likeliest.cumsum(dim=-1)
        if (cumulative[:, -1] >= p).all():
            break
    before = cumulative - likeliest  # what the likelier tokens have together
    last = (before[:, 1:] < p).sum(dim=-1, keepdim=True)  # (B, 1), the last one needed: the first, if p is 0
    return logits.masked_fill(probabilities < likeliest.gather(-1, last), -math.inf)


def keep_min_p(logits: "Tensor", p: float) -> "Tensor":
    """Mask out every token less than p times as likely as the likeliest one.

    >>> import torch
    >>> keep_min_p(torch.tensor([[0.1, 0.6, 0.3]]).log(), 0.4).exp()
    tensor([[0.0000, 0.6000, 0.3000]])
    """
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), -math.inf)


def sample(logits: "Tensor", uniforms: Sequence[float]) -> "Tensor":
    """Sample from softmax(logits): the token where the cumulative probability passes `uniforms`, B of them.

    One number decides one row, so a row's token does not depend on what else is in the batch.

    >>> import torch
    >>> sample(torch.tensor([[0.2, 0.5, 0.3]] * 3).log(), [0.1, 0.6, 0.9])
    tensor([0, 1, 2])
    """
    cumulative = logits.softmax(dim=-1).cpu().double().cumsum(dim=-1)  # (B, V); not every device has double
    # The last sum is 1 but for rounding. Count the tokens whose sum does not pass the number: that is the id.
    threshold = cumulative.new_tensor(uniforms)[:, None] * cumulative[:, -1:]  # (B, 1)
    return (cumulative <= threshold).sum(dim=-1).clamp(max=logits.shape[-1] - 1)
