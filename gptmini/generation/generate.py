"""From a prompt to new tokens, one at a time, under inference_mode.

`generate_by_definition` is the one to read: all of generation in a few lines. `generate_tokens` gives the
same tokens with less work, for many prompts at once (a test holds the two equal); `generate` calls it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gptmini.checkpoint.gpt2_directory import unwrap
from gptmini.errors import DivergedError
from gptmini.generation.cpu_decode import compiled_step
from gptmini.generation.kv_cache import KVCache, last_logits
from gptmini.generation.prompts import check_arguments, join, read_prompts, whole_number
from gptmini.generation.sampling import LogitsHook, Sampling, call_hook, row_generators, seen_tokens
from gptmini.memory import explain_shortage
from gptmini.model import GPT

_LESS = "give fewer texts at once, or shorter ones, or load a smaller precision"


@torch.inference_mode()  # no graph for a backward pass: saves time and memory
def generate_by_definition(model: GPT, tokens: Tensor, max_new_tokens: int, sampling: Sampling) -> Tensor:
    """Continue every row of int64 (B, T); returns (B, T + max_new_tokens).

    New tokens join the text by `torch.cat`, along the dimension of time:

    >>> torch.cat((torch.tensor([[1, 2], [5, 6]]), torch.tensor([[3], [7]])), dim=1)
    tensor([[1, 2, 3],
            [5, 6, 7]])
    """
    generators = row_generators(tokens.tolist(), sampling.seed)
    for _ in range(max_new_tokens):
        window = tokens[:, window_start(tokens.shape[1], model.config.context_length) :]  # (B, <= T)
        with eval_mode(model.modules()):
            logits = model(window)[:, -1].float()  # (B, V): the last position scores the next token
        # Each row has a random number in [0, 1): it takes the first token whose cumulative probability, by
        # softmax(logits / temperature), passes it. The tokens so far matter to a repetition penalty.
        uniforms = [generator.random() for generator in generators]
        next_tokens = sampling.choose(logits, tokens.tolist(), uniforms)  # (B,)
        next_tokens = next_tokens.to(tokens.device)[:, None]  # (B, 1)
        tokens = torch.cat((tokens, next_tokens), dim=1)  # (B, T + 1)
    return tokens


def window_start(length: int, context_length: int) -> int:
    """Where the window starts in a text of `length` tokens.

    At 0 while the text fits the context. After that, a window that slid by one token would give every token
    a new position, and all cached keys and values would be wrong. So it jumps by half a context at a time.

    >>> [window_start(length, 8) for length in (1, 8, 9, 13, 14, 19)]
    [0, 0, 5, 5, 10, 15]
    >>> [length - window_start(length, 8) for length in range(6, 16)]  # tokens in the window
    [6, 7, 8, 4, 5, 6, 7, 8, 4, 5]
    """
    kept = max(1, context_length // 2)
    jump = context_length + 1 - kept
    jumps = math.ceil((length - context_length) / jump)
    return max(0, jumps) * jump


@contextmanager
def eval_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    """No dropout inside; each module then gets its own mode back (model.train() would set all alike)."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def generate(
    model: GPT,
    tokens: Any,
    *,
    max_new_tokens: int = 200,
    seed: int | None = None,
    stop_token: int | None = None,
    logits_hook: LogitsHook | None = None,
    log_probabilities: bool = False,
    use_cache: bool = True,
    **sampling: Any,
) -> Any:
    """Continue every row of `tokens`, int64 (B, T); returns (B, T + n), n <= max_new_tokens, prompt included.

    A row ends early with `stop_token`, and is filled up with it. A tensor (T,) comes back as (T + n,).
    Prompts of unequal length are given as lists of ids, and come back as lists. `sampling` takes the fields
    of `sampling.Sampling`: temperature, top_k, top_p, min_p, repetition_penalty, no_repeat_token. With
    `log_probabilities` the result is a pair: the tokens, and for each row a list of what the model gave each
    new token, in nats, before temperature and the other options.

    A row's text depends on its own prompt and the seed, not on the rest of the batch; the k-th copy of a
    prompt (from 0) samples with seed + k. Without a seed every call is different. (Kernels for other
    batch sizes, and the cache, add in another order: logits agree to about 1e-6, so a text could differ
    where two tokens tie that closely.)

    `logits_hook` sees the model's logits, float32 (B, V), and the B texts so far, lists of ids, before every
    token; from what it returns the token is sampled. -inf bans a token:

    >>> from gptmini.config import GPTConfig
    >>> def only_even(logits, rows):
    ...     logits[:, 1::2] = -float("inf")
    ...     return logits
    >>> model = GPT(GPTConfig(vocab_size=20, n_layer=1, n_head=1, n_embd=8, context_length=8))
    >>> text = generate(model, torch.tensor([1, 3]), max_new_tokens=50, logits_hook=only_even)
    >>> (text[2:] % 2).any()
    tensor(False)

    Raises UserError for prompts that are empty or longer than the context, for ids outside the vocabulary,
    and for impossible options; DivergedError where the model's logits are NaN or infinite.
    """
    prompts, model = read_prompts(tokens), unwrap(model)  # lists of ids; the GPT inside a wrapper such as DDP
    options = Sampling(seed=seed, **sampling)
    check_arguments(model, prompts, options, max_new_tokens, logits_hook)
    if stop_token is not None:
        stop_token = whole_number("stop_token", stop_token, model.config.vocab_size)
    added: list[list[int]] = [[] for _ in prompts]
    scores: list[list[float]] = [[] for _ in prompts]
    for row, token, logits in generate_tokens(
        model,
        prompts,
        options,
        max_new_tokens=max_new_tokens,
        is_end=lambda row, token: token == stop_token,
        logits_hook=logits_hook,
        use_cache=use_cache,
    ):
        added[row].append(token)
        if log_probabilities:
            scores[row].append(logits.log_softmax(dim=-1)[token].item())
    result = join(tokens, prompts, added, stop_token)  # in the form in which the prompts came
    return (result, scores) if log_probabilities else result


@torch.inference_mode()
def generate_tokens(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    is_end: Callable[[int, int], bool] = lambda row, token: False,
    forbidden: Callable[[Sequence[int]], Tensor] | None = None,
    logits_hook: LogitsHook | None = None,
    use_cache: bool = True,
) -> Iterator[tuple[int, int, Tensor]]:
    """Continue all prompts together; yields each new token as (row, id, the model's logits (V,) for it).

    A row ends after max_new_tokens, or with the first token for which `is_end(row, id)`. `forbidden` is
    given the numbers of the B rows that go on, and returns True for each token that must not come next in
    them, (V,) or (B, V). The caller has called `check_arguments`.
    """
    rows = {number: list(prompt) for number, prompt in enumerate(prompts)}  # those that have not ended
    generators = row_generators(prompts, sampling.seed)
    # Room for the longest text, or for a full context if that is shorter.
    capacity = min(max(map(len, prompts), default=0) + max_new_tokens, model.config.context_length)
    with explain_shortage(_LESS):
        cache = KVCache(model, len(rows), capacity) if use_cache else None
    step = compiled_step(model)
    modules = list(model.modules())
    seen = None
    if sampling.repetition_penalty != 1.0:  # kept up to date, so that its cost does not grow with the text
        device = model.position_embedding.weight.device
        seen = seen_tokens(prompts, model.config.vocab_size).to(device)
    for _ in range(max_new_tokens):
        if not rows:
            return
        texts = list(rows.values())
        windows = [text[window_start(len(text), model.config.context_length) :] for text in texts]
        # Forward: the first time the whole prompt, then one new token per row, thanks to the cache.
        with eval_mode(modules), explain_shortage(_LESS):
            logits = last_logits(model, windows, cache, step).float()  # (B, V)
        # One NaN or infinity makes the largest one too; -inf, from a head that bans tokens, does not.
        if not logits.amax(dim=-1).isfinite().all():
            raise DivergedError("the model gives no finite logits: its training diverged or it is damaged")
        # Choose: the user's hook first, then what no text may have, then by the sampling options.
        scores = logits if logits_hook is None else call_hook(logits_hook, logits, texts)
        if forbidden is not None:
            scores = scores.masked_fill(forbidden(list(rows)), -math.inf)
        uniforms = [generators[number].random() for number in rows]
        chosen = sampling.choose(scores, texts, uniforms, seen).tolist()  # B ids
        # Append each row's token, and hand it to the caller at once.
        ended = set()
        for number, token, row_logits in zip(rows, chosen, logits, strict=True):
            rows[number].append(token)
            if is_end(number, token):
                ended.add(number)
            yield number, token, row_logits
        if seen is not None:
            seen[range(len(chosen)), chosen] = True
        # Rows that have ended leave the batch, and the cache.
        if ended:
            kept = [i for i, number in enumerate(rows) if number not in ended]
            cache = None if cache is None else cache.select(kept)
            seen = None if seen is None else seen[kept]
            rows = {number: row for number, row in rows.items() if number not in ended}
