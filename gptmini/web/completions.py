"""POST /v1/completions: the request as OpenAI's clients send it, and the answer that they expect."""

import codecs
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import Field, model_validator

from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import UserError
from gptmini.generation.sampling import SamplingOptions
from gptmini.generation.streaming import MAX_BATCH, StreamDecoder, continue_texts, encode_prompt
from gptmini.schema import Section
from gptmini.web.catalog import Loaded
from gptmini.web.inspection import token_log_probabilities

MAX_NEW_TOKENS = 4096

Ids: TypeAlias = list[Annotated[int, Field(ge=0, lt=2**31)]]
StopString: TypeAlias = Annotated[str, Field(min_length=1, max_length=1000)]


class StreamOptions(Section):
    """What a stream ends with."""

    include_usage: bool = Field(False, description="A last chunk with the numbers of tokens.")


class CompletionRequest(SamplingOptions):
    """The keys of OpenAI's completions, and gptmini's other sampling options; null is a key's default."""

    model: str = Field(description="A name of /v1/models, or NAME@STEP for a checkpoint that a run keeps.")
    prompt: str | list[str] | Ids | list[Ids] = Field("", description="Texts, or token ids, to continue.")
    max_tokens: int = Field(16, ge=0, le=MAX_NEW_TOKENS, description="Tokens to generate at most.")
    n: int = Field(1, ge=1, le=MAX_BATCH, description="Texts for each prompt; text k samples with seed + k.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="The same seed gives the same text.")
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] = Field(
        [], description="A text ends before any of these."
    )
    logprobs: int | None = Field(
        None, ge=0, le=20, description="With each token its log probability and this many of the likeliest."
    )
    echo: bool = Field(False, description="The prompt comes before its continuation.")
    stream: bool = Field(False, description="Answer in pieces, as they are generated.")
    stream_options: StreamOptions | None = None
    user: str = Field("", description="Is not read.")
    # Other keys of OpenAI's, which are taken where they change nothing.
    best_of: int | None = None
    suffix: str | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[str, float] = Field({})

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _refuse_what_is_not_done(self) -> "CompletionRequest":
        if self.best_of not in (None, self.n):
            raise ValueError("best_of is not done here: ask for n texts, and choose by their logprobs")
        if self.presence_penalty or self.frequency_penalty:
            raise ValueError("presence_penalty and frequency_penalty are not done: take repetition_penalty")
        if self.suffix or self.logit_bias:
            raise ValueError("suffix and logit_bias are not done here: leave them out")
        return self


class Scored(NamedTuple):
    """A token, its log probability in nats (None for the first of a prompt), the likeliest in its place."""

    token: int
    log_probability: float | None
    likeliest: dict[int, float]


class Piece(NamedTuple):
    """What one of the texts gains."""

    choice: int  # which of them
    text: str
    scored: list[Scored]
    new_tokens: int = 0
    finish_reason: Literal["stop", "length"] | None = None


def read_prompts(loaded: Loaded, request: CompletionRequest) -> list[list[int]]:
    """The ids of each prompt; UserError for what cannot be continued."""
    given: Any = request.prompt
    one = isinstance(given, str) or (given and isinstance(given[0], int))
    prompts: list[str | list[int]] = [given] if one else given
    if not prompts:
        raise UserError("prompt is an empty list: give a text, or token ids")
    if len(prompts) * request.n > MAX_BATCH:
        raise UserError(
            f"{len(prompts)} prompts x {request.n} texts: at most {MAX_BATCH} at once; ask again for more"
        )
    model, tokenizer = loaded
    rows = [encode_prompt(model, tokenizer, p, False) if isinstance(p, str) else p for p in prompts]
    if (longest := max(map(len, rows))) > model.config.context_length:
        limit = model.config.context_length
        raise UserError(f"the prompt has {longest} tokens, but the model's context is {limit}: shorten it")
    return rows


def complete(loaded: Loaded, request: CompletionRequest) -> Iterator[Piece]:
    """Generate all texts together; pieces come in the order in which they are sampled."""
    (model, tokenizer), prompts = loaded, read_prompts(loaded, request)
    rows = [prompt for prompt in prompts for _ in range(request.n)]
    texts = [decoder_after(tokenizer, row, request.stop) for row in rows]
    sampling = request.model_dump(include={*SamplingOptions.model_fields, "seed"})
    steps = continue_texts(model, rows, texts, request.max_tokens, **sampling)
    if request.echo:
        for index, row in enumerate(rows):
            yield Piece(index, tokenizer.decode(row), _score_prompt(loaded, row, request.logprobs))
    unfinished = set(range(len(rows)))
    for index, token, logits in steps:
        scored = []
        if request.logprobs is not None:
            scored = [_score(token, logits.log_softmax(dim=-1), request.logprobs)]
        ended = texts[index].ended or token == tokenizer.end_of_text
        unfinished -= {index} if ended else set()
        text = texts[index].pop() + (texts[index].flush() if ended else "")
        yield Piece(index, text, scored, 1, "stop" if ended else None)
    for index in sorted(unfinished):
        yield Piece(index, texts[index].flush(), [], 0, "length")


def decoder_after(tokenizer: Tokenizer, prompt: Sequence[int], stop: Any = ()) -> StreamDecoder:
    """A decoder of what follows a prompt, which may end inside a character."""
    text = StreamDecoder(tokenizer, stop)
    text.utf8.decode(tokenizer.decode_bytes(prompt))
    return text


def _score_prompt(loaded: Loaded, row: Sequence[int], count: int | None) -> list[Scored]:
    if count is None:
        return []
    rest = zip(row[1:], token_log_probabilities(loaded.model, row), strict=True)
    return [Scored(row[0], None, {}), *(_score(token, values, count) for token, values in rest)]


def _score(token: int, log_probabilities: Any, count: int) -> Scored:
    likeliest = log_probabilities.topk(min(count, len(log_probabilities)))
    chosen = log_probabilities[token].item()
    others = dict(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True))
    return Scored(token, chosen, others | {token: chosen})


class Answer:
    """The JSON of one answer, whole or in chunks."""

    def __init__(
        self, tokenizer: Tokenizer, request: CompletionRequest, prompts: Sequence[Sequence[int]]
    ) -> None:
        self.tokenizer, self.request = tokenizer, request
        self.prompt_tokens, self.completion_tokens = sum(map(len, prompts)), 0
        self.head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": request.model,
        }
        # Where each text stands: with echo at its beginning, else at the end of its prompt.
        lengths = [0 if request.echo else len(tokenizer.decode(prompt)) for prompt in prompts]
        self.offsets = [length for length in lengths for _ in range(request.n)]
        decoder = codecs.getincrementaldecoder("utf-8")
        self.decoders = [decoder("replace") for _ in self.offsets]

    @property
    def usage(self) -> dict[str, int]:
        """How many tokens were read and generated so far."""
        total = self.prompt_tokens + self.completion_tokens
        counts = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        return {**counts, "total_tokens": total}

    def whole(self, pieces: Iterable[Piece]) -> dict[str, Any]:
        """All pieces in one object."""
        choices = [self._choice(Piece(index, "", [])) for index in range(len(self.offsets))]
        for piece in pieces:
            new, choice = self._choice(piece), choices[piece.choice]
            choice["text"] += new["text"]
            choice["finish_reason"] = new["finish_reason"]
            for key, values in (new["logprobs"] or {}).items():
                choice["logprobs"][key] += values
        return {**self.head, "choices": choices, "usage": self.usage}

    async def chunks(self, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[dict[str, Any], None]:
        """An object for each piece, and one for the usage where it was asked for."""
        options = self.request.stream_options
        with_usage = options is not None and options.include_usage
        head = self.head | ({"usage": None} if with_usage else {})
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield {**head, "choices": [self._choice(piece)]}
        if with_usage:
            yield {**self.head, "choices": [], "usage": self.usage}

    def _choice(self, piece: Piece) -> dict[str, Any]:
        self.completion_tokens += piece.new_tokens
        logprobs: dict[str, list[Any]] | None = None
        if self.request.logprobs is not None:
            logprobs = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
            for token, log_probability, likeliest in piece.scored:
                logprobs["tokens"].append(self._name(token))
                logprobs["token_logprobs"].append(log_probability)
                named = {self._name(i): value for i, value in likeliest.items()}
                logprobs["top_logprobs"].append(named or None)
                logprobs["text_offset"].append(self.offsets[piece.choice])
                text = self.decoders[piece.choice].decode(self.tokenizer.decode_bytes([token]))
                self.offsets[piece.choice] += len(text)
        return {
            "text": piece.text,
            "index": piece.choice,
            "logprobs": logprobs,
            "finish_reason": piece.finish_reason,
        }

    def _name(self, token: int) -> str:
        """A token as OpenAI names it: its text, or its bytes where these are no whole characters."""
        data = self.tokenizer.decode_bytes([token])
        if not data:
            return special_name(self.tokenizer, token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def special_name(tokenizer: Tokenizer, token: int) -> str:
    """The name of a token without bytes, such as <|endoftext|>."""
    return next((name for name, i in tokenizer.special_tokens.items() if i == token), "")
