"""From a prompt to text, one token at a time, under inference_mode.

What is generated is defined without the cache: the next token is chosen from the logits of the last
position of a window of the text. The window is the whole text while that fits the model's context; when it
does not, the window's start jumps so that half a context stays (`window_start`), because learned absolute
positions cannot slide. A cache (kv_cache.py) computes the same with less work.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeVar, overload

import torch
from torch import Tensor

from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import UserError
from gptmini.generation.kv_cache import KVCache
from gptmini.generation.sampling import Sampling, build_sampling
from gptmini.generation.streaming import StreamDecoder
from gptmini.model import GPT

Prompts = TypeVar("Prompts", Tensor, list[list[int]])  # what goes in as a tensor comes out as a tensor
SAMPLES_AT_ONCE = 16  # rows of one batch in generate_text: more gain little speed and need more memory


@overload
def generate(
    model: GPT,
    tokens: Prompts,
    *,
    max_new_tokens: int,
    seed: int | None = ...,
    stop_token: int | None = ...,
    use_cache: bool = ...,
    log_probabilities: Literal[False] = ...,
    **sampling: float | None,
) -> Prompts: ...
@overload
def generate(
    model: GPT,
    tokens: Prompts,
    *,
    max_new_tokens: int,
    seed: int | None = ...,
    stop_token: int | None = ...,
    use_cache: bool = ...,
    log_probabilities: Literal[True],
    **sampling: float | None,
) -> tuple[Prompts, list[list[float]]]: ...
def generate(
    model: GPT,
    tokens: Prompts,
    *,
    max_new_tokens: int,
    seed: int | None = None,
    stop_token: int | None = None,
    use_cache: bool = True,
    log_probabilities: bool = False,
    **sampling: float | None,
) -> Prompts | tuple[Prompts, list[list[float]]]:
    """Continue every row of `tokens`, int64 (B, T); returns (B, T + n), n <= max_new_tokens, prompt included.

    A row ends early with `stop_token`, and is filled up with it. Prompts of unequal length are given as
    lists of ids, and come back as lists. `sampling` takes the fields of `sampling.Sampling`: temperature,
    top_k, top_p, min_p, repetition_penalty, no_repeat_token. With `log_probabilities` the result is a pair:
    the tokens, and for each row what the model gave each new token, in nats (`Token.log_probability`).

    A row's text depends on its own prompt and the seed, not on the rest of the batch; copies of one prompt
    are numbered, and copy k draws with seed + k. Without a seed every call is different. (Kernels for other
    batch sizes, and the cache, add in another order: logits agree to about 1e-6, so a text could differ
    where two tokens tie, or a draw falls, that closely.)

    Raises UserError for prompts that are empty or longer than the context, for ids outside the vocabulary,
    and for impossible options.

    New tokens are joined to the prompt by `torch.cat`, along the dimension of time:

    >>> torch.cat((torch.tensor([[1, 2], [5, 6]]), torch.tensor([[3], [7]])), dim=1)
    tensor([[1, 2, 3],
            [5, 6, 7]])
    """
    prompts = _lists(tokens)
    rules = build_sampling(**sampling)
    _check_id(model, "stop_token", stop_token)
    _check_id(model, "no_repeat_token", rules.no_repeat_token)
    added: list[list[int]] = [[] for _ in prompts]
    scores: list[list[float]] = [[] for _ in prompts]
    for token in generate_tokens(
        model,
        prompts,
        rules,
        max_new_tokens=max_new_tokens,
        seed=seed,
        is_end=lambda row, token: token == stop_token,
        use_cache=use_cache,
    ):
        added[token.row].append(token.id)
        if log_probabilities:
            scores[token.row].append(token.log_probability)
    result = _join(tokens, added, stop_token)
    return (result, scores) if log_probabilities else result


def _lists(tokens: Prompts) -> list[list[int]]:
    """The prompts as lists of ids; UserError where they are anything else."""
    if isinstance(tokens, Tensor):
        if tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32):
            raise UserError(f"tokens are {tokens.dtype} {tuple(tokens.shape)}, but must be int64 (B, T)")
        return tokens.tolist()
    lists = isinstance(tokens, list) and all(isinstance(row, list) for row in tokens)
    if not lists or not all(type(token) is int for row in tokens for token in row):
        raise UserError(
            f"prompts are a {type(tokens).__name__}, but must be int64 (B, T) or a list of lists of token ids"
        )
    return tokens


def _join(tokens: Prompts, added: list[list[int]], stop_token: int | None) -> Prompts:
    """The prompts with what was added to them; rows of a tensor filled up to the longest."""
    if isinstance(tokens, Tensor):
        n = max(map(len, added), default=0)
        filled = [row + [stop_token or 0] * (n - len(row)) for row in added]
        new = torch.tensor(filled, dtype=torch.int64, device=tokens.device).view(len(added), n)  # (B, n)
        return torch.cat((tokens, new), dim=1)  # (B, T + n)
    return [prompt + row for prompt, row in zip(tokens, added, strict=True)]


@dataclass(frozen=True)
class Token:
    """A generated token: `id`, continuing prompt number `row`, chosen from `logits` (V,)."""

    row: int
    id: int
    logits: Tensor

    @property
    def log_probability(self) -> float:
        """What the model gives this token, in nats, before temperature and the other options."""
        return self.logits.log_softmax(dim=-1)[self.id].item()


@torch.inference_mode()
def generate_tokens(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    seed: int | None = None,
    is_end: Callable[[int, int], bool] = lambda row, token: False,
    use_cache: bool = True,
) -> Iterator[Token]:
    """Continue all prompts together, yielding each new token of each row as it comes.

    A row ends after max_new_tokens, or with the first token for which `is_end(row, token id)`.

    Under `torch.inference_mode` nothing is remembered for a backward pass, which saves time and memory:

    >>> weight = torch.ones(2, requires_grad=True)
    >>> with torch.inference_mode():
    ...     (2 * weight).requires_grad
    False
    """
    _check(model, prompts, max_new_tokens, seed)
    rows = {number: list(prompt) for number, prompt in enumerate(prompts)}
    uniform = _row_generators(prompts, seed)
    capacity = min(max(map(len, prompts), default=0) + max_new_tokens, model.config.context_length)
    cache = KVCache(model, len(rows), capacity) if use_cache else None
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            if not rows:
                return
            texts = list(rows.values())
            logits = model.lm_head(last_hidden_states(model, texts, cache)).float()  # (B, V)
            if not logits.sum().isfinite():
                raise UserError("the model gives no finite logits: its training diverged or it is damaged")
            draws = [uniform[number].random() for number in rows]
            chosen = sampling.choose(logits, texts, draws).tolist()  # B ids
            ended = set()
            for number, token, scores in zip(rows, chosen, logits, strict=True):
                rows[number].append(token)
                if is_end(number, token):
                    ended.add(number)
                yield Token(number, token, scores)
            if ended:
                if cache is not None:
                    cache = cache.select([i for i, number in enumerate(rows) if number not in ended])
                rows = {number: row for number, row in rows.items() if number not in ended}
    finally:
        model.train(was_training)


def last_hidden_states(model: GPT, rows: Sequence[Sequence[int]], cache: KVCache | None) -> Tensor:
    """The residual stream (B, C) at the last token of each row, where the next token's logits come from.

    A cache is used where it holds the row's window but for the last token, and filled where it does not: at
    the start, and when the window has jumped.
    """
    device = model.position_embedding.weight.device
    windows = [row[window_start(len(row), model.config.context_length) :] for row in rows]
    if cache is None:
        return torch.cat(
            [model.hidden_states(torch.tensor(windows[a:b], device=device))[:, -1] for a, b in _runs(windows)]
        )
    for a, b in _runs(windows):
        past = len(windows[a]) - 1
        if cache.lengths[a:b] != [past] * (b - a):
            part = cache.rows(a, b)
            if past:
                model.hidden_states(torch.tensor(windows[a:b], device=device)[:, :-1], part)
            cache.lengths[a:b] = part.lengths
    last = torch.tensor([[window[-1]] for window in windows], device=device)  # (B, 1)
    return model.hidden_states(last, cache)[:, -1]


def window_start(length: int, context_length: int) -> int:
    """Where the window starts in a text of `length` tokens.

    At 0 while the text fits; then it jumps, so that half a context is left to look at and half to fill:

    >>> [window_start(length, 8) for length in (1, 8, 9, 13, 14, 19)]
    [0, 0, 5, 5, 10, 15]
    >>> [length - window_start(length, 8) for length in range(6, 16)]  # tokens in the window
    [6, 7, 8, 4, 5, 6, 7, 8, 4, 5]
    """
    kept = max(1, context_length // 2)
    jump = context_length + 1 - kept
    return max(0, -(-(length - context_length) // jump)) * jump


def _runs(windows: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Neighbouring windows of equal length, as (start, stop): they go through the model together."""
    runs, start = [], 0
    for _, group in groupby(windows, len):
        stop = start + len(list(group))
        runs.append((start, stop))
        start = stop
    return runs


def generate_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    num_samples: int = 1,
    seed: int | None = None,
    stop: Sequence[str] = (),
    truncate_prompt: bool = False,
    **sampling: float | None,
) -> Iterator[str]:
    """Texts that continue `prompt`, one per sample, prompt included; sample k draws with seed + k.

    A text ends before its end-of-text token or before the first of the `stop` strings. An empty prompt
    starts from end of text. Raises UserError as `generate` does; with `truncate_prompt`, of a prompt longer
    than the context only the last tokens are read.
    """
    ids = encode_prompt(model, tokenizer, prompt, truncate_prompt)
    for first in range(0, num_samples, SAMPLES_AT_ONCE):
        batch = [ids] * min(SAMPLES_AT_ONCE, num_samples - first)
        texts = [StreamDecoder(tokenizer, stop) for _ in batch]
        for _ in generate_tokens(
            model,
            batch,
            build_sampling(no_repeat_token=tokenizer.end_of_text, **sampling),
            max_new_tokens=max_new_tokens,
            seed=None if seed is None else seed + first,
            is_end=lambda row, token: texts[row].add(token),  # noqa: B023  # called in this loop only
        ):
            pass
        for text in texts:
            yield prompt + text.flush()


def stream(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    seed: int | None = None,
    stop: Sequence[str] = (),
    truncate_prompt: bool = False,
    **sampling: float | None,
) -> Iterator[str]:
    """The same text as the first of `generate_text`, without the prompt, in pieces as they are generated.

    A piece never ends inside a character, and never holds the beginning of a stop string that comes true.
    """
    text = StreamDecoder(tokenizer, stop)
    for _ in generate_tokens(
        model,
        [encode_prompt(model, tokenizer, prompt, truncate_prompt)],
        build_sampling(no_repeat_token=tokenizer.end_of_text, **sampling),
        max_new_tokens=max_new_tokens,
        seed=seed,
        is_end=lambda row, token: text.add(token),
    ):
        if piece := text.pop():
            yield piece
    if piece := text.flush():
        yield piece


def encode_prompt(model: GPT, tokenizer: Tokenizer, prompt: str, truncate: bool) -> list[int]:
    """The prompt's ids, at least one; with `truncate`, at most the last context_length of them."""
    ids = tokenizer.encode(prompt)
    if not ids:
        if tokenizer.end_of_text is None:
            raise UserError(
                "the prompt is empty, and this tokenizer has no end of text to start from: give one"
            )
        ids = [tokenizer.end_of_text]
    return ids[-model.config.context_length :] if truncate else ids


def _check(model: GPT, prompts: Sequence[Sequence[int]], max_new_tokens: int, seed: int | None) -> None:
    context_length = model.config.context_length
    for name, value in (("max_new_tokens", max_new_tokens), ("seed", 0 if seed is None else seed)):
        if type(value) is not int or value < 0:
            raise UserError(f"{name} = {value} must be a whole number of at least 0")
    for prompt in prompts:
        if not prompt:
            raise UserError("a prompt holds no tokens: start from end of text, or from any one token")
        if len(prompt) > context_length:
            raise UserError(
                f"the prompt has {len(prompt)} tokens, but the model's context is {context_length}: shorten "
                "it, or keep its end only (--truncate-prompt left; truncate_prompt=True)"
            )
        for token in (min(prompt), max(prompt)):
            _check_id(model, "token id", token)


def _check_id(model: GPT, name: str, token: int | None) -> None:
    vocab_size = model.config.vocab_size
    if token is not None and (type(token) is not int or not 0 <= token < vocab_size):
        raise UserError(f"{name} {token} is outside the model's vocabulary of {vocab_size}")


def _row_generators(prompts: Sequence[Sequence[int]], seed: int | None) -> dict[int, random.Random]:
    """A random generator per row: Python's, whose numbers are the same on every device and version."""
    copies: Counter[tuple[int, ...]] = Counter()
    generators = {}
    for number, prompt in enumerate(prompts):
        generators[number] = random.Random(None if seed is None else seed + copies[tuple(prompt)])
        copies[tuple(prompt)] += 1
    return generators
