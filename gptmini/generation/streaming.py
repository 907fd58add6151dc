"""Generation in text: whole texts, and pieces of one as they are generated."""

import codecs
from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from gptmini.checkpoint.gpt2_directory import unwrap
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import UserError
from gptmini.generation.generate import generate_tokens
from gptmini.generation.prompts import check_arguments, whole_number
from gptmini.generation.sampling import LogitsHook, Sampling
from gptmini.generation.text_mask import forbidden_tokens
from gptmini.model import GPT

Steps: TypeAlias = Iterator[tuple[int, int, Tensor]]  # as `generate_tokens` yields them
MAX_BATCH = 16  # samples generated together: more gain little speed and need more memory


def generate_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int = 200,
    num_samples: int = 1,
    seed: int | None = None,
    stop: Collection[str] = (),
    truncate_prompt: bool = False,
    parse_special: bool = False,
    allow_invalid_utf8: bool = False,
    logits_hook: LogitsHook | None = None,
    **sampling: Any,
) -> Iterator[str]:
    """Texts that continue `prompt`, one per sample, prompt included; sample k samples with seed + k.

    A text ends before its end-of-text token or before the first of the `stop` strings. An empty prompt
    starts where a document starts: from end of text, or from the first token of a training text that was one
    document. With `truncate_prompt`, only the last tokens of a prompt longer than the context are read. With
    `parse_special`, names such as <|endoftext|> in it are those tokens, and not plain text.

    Only tokens that the tokenizer has and that keep the text UTF-8 are sampled, and a character that
    max_new_tokens would cut is left out. With `allow_invalid_utf8`, for the bytes of data that is no text,
    bytes that are no character become U+FFFD. `sampling`, `logits_hook` and what raises UserError, at the
    call, are as in `generate`.
    """
    ids = encode_prompt(model, tokenizer, prompt, truncate_prompt, parse_special)
    num_samples = whole_number("num_samples", num_samples)
    first_seed = None if seed is None else whole_number("seed", seed)

    def batch(first: int) -> tuple[list[StreamDecoder], Steps]:
        count = min(MAX_BATCH, max(1, num_samples - first))
        start = () if prompt else ids
        texts = [StreamDecoder(tokenizer, stop, allow_invalid_utf8, start) for _ in range(count)]
        options = {**sampling, "seed": None if first_seed is None else first_seed + first}
        return texts, continue_texts(model, [ids] * count, texts, max_new_tokens, logits_hook, **options)

    def whole_texts() -> Iterator[str]:
        for first in range(0, num_samples, MAX_BATCH):
            texts, steps = batch(first)
            pieces = [[prompt] for _ in texts]
            for row, _, _ in steps:
                pieces[row].append(texts[row].pop())
            for text, parts in zip(texts, pieces, strict=True):
                yield "".join([*parts, text.flush()])

    batch(0)  # wrong arguments raise here, not at the first text
    return whole_texts()


def stream(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int = 200,
    seed: int | None = None,
    stop: Collection[str] = (),
    truncate_prompt: bool = False,
    parse_special: bool = False,
    allow_invalid_utf8: bool = False,
    logits_hook: LogitsHook | None = None,
    **sampling: Any,
) -> Iterator[str]:
    """The same text as the first of `generate_text`, without the prompt, in pieces as they are generated.

    A piece never ends inside a character, and never holds the beginning of a stop string that follows.
    """
    ids = encode_prompt(model, tokenizer, prompt, truncate_prompt, parse_special)
    text = StreamDecoder(tokenizer, stop, allow_invalid_utf8, () if prompt else ids)
    steps = continue_texts(model, [ids], [text], max_new_tokens, logits_hook, seed=seed, **sampling)

    def pieces() -> Iterator[str]:
        for _ in steps:
            if piece := text.pop():
                yield piece
        if piece := text.flush():
            yield piece

    return pieces()


def encode_prompt(
    model: GPT, tokenizer: Tokenizer, prompt: str, truncate: bool, parse_special: bool = False
) -> list[int]:
    """The prompt's ids, or the one that an empty prompt starts from; with `truncate`, at most the last
    context_length of them."""
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(f"generating text needs the model's tokenizer, not {type(tokenizer).__name__}")
    ids = tokenizer.encode(prompt, parse_special=parse_special)
    if not ids:
        if tokenizer.start_token is None:
            raise UserError("the prompt is empty, and this tokenizer has no end of text: give a prompt")
        ids = [tokenizer.start_token]
    return ids[-unwrap(model).config.context_length :] if truncate else ids


def continue_texts(
    model: GPT,
    prompts: Sequence[list[int]],
    texts: Sequence["StreamDecoder"],
    max_new_tokens: int,
    logits_hook: LogitsHook | None = None,
    **sampling: Any,
) -> Steps:
    """Continue the prompts, one for each of `texts`, adding to these each token that is yielded."""
    model, tokenizer = unwrap(model), texts[0].tokenizer
    vocab_size, device = model.config.vocab_size, model.position_embedding.weight.device
    # End of text after end of text would be an empty text. (A model may lack it: nanoGPT's of characters.)
    no_repeat_token = tokenizer.end_of_text if tokenizer.end_of_text in range(vocab_size) else None
    options = Sampling(**{"no_repeat_token": no_repeat_token, **sampling})
    check_arguments(model, prompts, options, max_new_tokens, logits_hook)

    def forbidden(rows: Sequence[int]) -> Tensor:
        unfinished = [texts[row].unfinished for row in rows]
        return forbidden_tokens(tokenizer, vocab_size, device, unfinished)

    return generate_tokens(
        model,
        prompts,
        options,
        max_new_tokens=max_new_tokens,
        is_end=lambda row, token: texts[row].add(token),
        forbidden=forbidden,
        logits_hook=logits_hook,
    )


class StreamDecoder:
    """The text of one row: bytes of tokens decoded to characters, and cut where a stop string begins."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Collection[str] = (),
        allow_invalid_utf8: bool = False,
        start: Sequence[int] = (),
    ) -> None:
        """`start` are ids that the text begins with: none where it continues a prompt."""
        stop = (stop,) if isinstance(stop, str) else stop or ()
        if not (isinstance(stop, Collection) and all(isinstance(text, str) and text for text in stop)):
            raise UserError(f"stop = {stop}: a stop string must be a text that is not empty")
        self.tokenizer = tokenizer
        self.stop = stop
        self.allow_invalid_utf8 = allow_invalid_utf8
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")  # keeps the bytes of a half character
        self.pending = ""  # decoded, and not popped yet
        self.ended = False
        for token in start:
            self.add(token)

    @property
    def unfinished(self) -> bytes | None:
        """The bytes of the character that the text ends within; None where any bytes may follow."""
        return None if self.allow_invalid_utf8 else self.utf8.getstate()[0]

    def add(self, token: int) -> bool:
        """Append a token to the text; returns whether the text ends with it."""
        if self.ended or token == self.tokenizer.end_of_text:
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
        """What is left when no more tokens come. Bytes of an unfinished character are left out, or with
        `allow_invalid_utf8` become U+FFFD."""
        keep = self.allow_invalid_utf8 and not self.ended
        piece, self.pending = self.pending + (self.utf8.decode(b"", final=True) if keep else ""), ""
        return piece
