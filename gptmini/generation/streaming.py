"""Generation in text: whole texts, and pieces of one as they are generated."""

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from gptmini.checkpoint.gpt2_directory import unwrap
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import UserError
from gptmini.generation.generate import generate_tokens
from gptmini.generation.prompts import whole_number
from gptmini.generation.sampling import LogitsHook, Sampling
from gptmini.model import GPT

MAX_BATCH = 16  # samples generated together: more gain little speed and need more memory


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
    logits_hook: LogitsHook | None = None,
    **sampling: Any,
) -> Iterator[str]:
    """Texts that continue `prompt`, one per sample, prompt included; sample k samples with seed + k.

    A text ends before its end-of-text token or before the first of the `stop` strings. An empty prompt
    starts from end of text. With `truncate_prompt`, only the last tokens of a prompt longer than the context
    are read. `sampling`, `logits_hook` and what raises UserError are as in `generate`.
    """
    ids = encode_prompt(model, tokenizer, prompt, truncate_prompt)
    num_samples = whole_number("num_samples", num_samples)
    for first in range(0, num_samples, MAX_BATCH):
        texts = [StreamDecoder(tokenizer, stop) for _ in range(min(MAX_BATCH, num_samples - first))]
        sampling["seed"] = None if seed is None else seed + first
        for _ in continue_texts(model, ids, texts, max_new_tokens, logits_hook, **sampling):
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
    logits_hook: LogitsHook | None = None,
    **sampling: Any,
) -> Iterator[str]:
    """The same text as the first of `generate_text`, without the prompt, in pieces as they are generated.

    A piece never ends inside a character, and never holds the beginning of a stop string that follows.
    """
    ids, text = encode_prompt(model, tokenizer, prompt, truncate_prompt), StreamDecoder(tokenizer, stop)
    for _ in continue_texts(model, ids, [text], max_new_tokens, logits_hook, seed=seed, **sampling):
        if piece := text.pop():
            yield piece
    if piece := text.flush():
        yield piece


def encode_prompt(model: GPT, tokenizer: Tokenizer, prompt: str, truncate: bool) -> list[int]:
    """The prompt's ids, at least one; with `truncate`, at most the last context_length of them."""
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(f"generating text needs the model's tokenizer, not {type(tokenizer).__name__}")
    if not isinstance(prompt, str):
        raise UserError(f"the prompt is a {type(prompt).__name__}, not a str: give one text at a time")
    ids = tokenizer.encode(prompt)
    if not ids:
        if tokenizer.end_of_text is None:
            raise UserError("the prompt is empty, and this tokenizer has no end of text: give a prompt")
        ids = [tokenizer.end_of_text]
    return ids[-unwrap(model).config.context_length :] if truncate else ids


def continue_texts(
    model: GPT,
    prompt: list[int],
    texts: Sequence["StreamDecoder"],
    max_new_tokens: int,
    logits_hook: LogitsHook | None = None,
    **sampling: Any,
) -> Iterator[tuple[int, int, Tensor]]:
    """Continue the prompt once for each of `texts`, adding to them each token that is yielded."""
    return generate_tokens(
        model,
        [prompt] * len(texts),
        Sampling(no_repeat_token=texts[0].tokenizer.end_of_text, **sampling),
        max_new_tokens=max_new_tokens,
        is_end=lambda row, token: texts[row].add(token),
        logits_hook=logits_hook,
    )


class StreamDecoder:
    """The text of one row: bytes of tokens decoded to characters, and cut where a stop string begins."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        stop = (stop,) if isinstance(stop, str) else tuple(stop or ())
        if not all(isinstance(text, str) and text for text in stop):
            raise UserError(f"stop = {stop}: a stop string must be a text that is not empty")
        self.tokenizer = tokenizer
        self.stop = stop
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")  # keeps the bytes of a half character
        self.pending = ""  # decoded, and not popped yet
        self.ended = False

    def add(self, token: int) -> bool:
        """Append a token to the text; returns whether the text ends with it."""
        if token == self.tokenizer.end_of_text:
            return True
        self.pending += self.utf8.decode(self.tokenizer.decode_bytes([token]))
        found = [start for stop in self.stop if (start := self.pending.find(stop)) >= 0]
        if found:
            self.pending, self.ended = self.pending[: min(found)], True
        return self.ended

    def pop(self) -> str:
        """The text that no later token can change, from where the last pop ended."""
        # what may be the beginning of a stop string is held back
        beginnings = [stop[:n] for stop in self.stop for n in range(1, len(stop)) if not self.ended]
        held = max((len(start) for start in beginnings if self.pending.endswith(start)), default=0)
        cut = len(self.pending) - held
        piece, self.pending = self.pending[:cut], self.pending[cut:]
        return piece

    def flush(self) -> str:
        """What is left when no more tokens come; bytes of an unfinished character become U+FFFD."""
        unfinished = "" if self.ended else self.utf8.decode(b"", final=True)
        piece, self.pending = self.pending + unfinished, ""
        return piece
