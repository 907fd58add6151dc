"""Generation in text: whole texts, and pieces of one as they are generated."""

import codecs
from collections.abc import Iterator, Sequence

from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import UserError
from gptmini.generation.generate import generate_tokens
from gptmini.generation.prompts import encode_prompt
from gptmini.generation.sampling import LogitsHook, build_sampling
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
    **sampling: float | None,
) -> Iterator[str]:
    """Texts that continue `prompt`, one per sample, prompt included; sample k samples with seed + k.

    A text ends before its end-of-text token or before the first of the `stop` strings. An empty prompt
    starts from end of text. `sampling` and `logits_hook` are those of `generate`. With
    `truncate_prompt`, of a prompt longer than the context only the last tokens are read. Raises UserError as
    `generate` does.
    """
    ids = encode_prompt(model, tokenizer, prompt, truncate_prompt)
    for first in range(0, num_samples, MAX_BATCH):
        texts = [StreamDecoder(tokenizer, stop) for _ in range(min(MAX_BATCH, num_samples - first))]
        for _ in generate_tokens(
            model,
            [ids] * len(texts),
            build_sampling(no_repeat_token=tokenizer.end_of_text, **sampling),
            max_new_tokens=max_new_tokens,
            seed=None if seed is None else seed + first,
            is_end=lambda row, token: texts[row].add(token),  # noqa: B023  # called in this loop only
            logits_hook=logits_hook,
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
    logits_hook: LogitsHook | None = None,
    **sampling: float | None,
) -> Iterator[str]:
    """The same text as the first of `generate_text`, without the prompt, in pieces as they are generated.

    A piece never ends inside a character, and never holds the beginning of a stop string that follows.
    """
    text = StreamDecoder(tokenizer, stop)
    for _ in generate_tokens(
        model,
        [encode_prompt(model, tokenizer, prompt, truncate_prompt)],
        build_sampling(no_repeat_token=tokenizer.end_of_text, **sampling),
        max_new_tokens=max_new_tokens,
        seed=seed,
        is_end=lambda row, token: text.add(token),
        logits_hook=logits_hook,
    ):
        if piece := text.pop():
            yield piece
    if piece := text.flush():
        yield piece


class StreamDecoder:
    """The text of one row: bytes of tokens decoded to characters, and cut where a stop string begins."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        stop = (stop,) if isinstance(stop, str) else stop
        if "" in stop:
            raise UserError("a stop string is empty, and would end every text at once: leave it out")
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
        held = 0 if self.ended else max((_overlap(self.pending, stop) for stop in self.stop), default=0)
        cut = len(self.pending) - held
        piece, self.pending = self.pending[:cut], self.pending[cut:]
        return piece

    def flush(self) -> str:
        """What is left when no more tokens come; bytes of an unfinished character become U+FFFD."""
        unfinished = "" if self.ended else self.utf8.decode(b"", final=True)
        piece, self.pending = self.pending + unfinished, ""
        return piece


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` may be the beginning of `stop`.

    >>> _overlap("the en", "end"), _overlap("the en", "new")
    (2, 1)
    """
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
