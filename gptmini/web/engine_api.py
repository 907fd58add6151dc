"""The page's engine over HTTP: what gptmini/web/server_engine.js asks for."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from fastapi import APIRouter, Response
from pydantic import Field

from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import UserError
from gptmini.generation.sampling import SamplingOptions
from gptmini.generation.streaming import StreamDecoder, continue_texts, encode_prompt
from gptmini.model import GPT
from gptmini.schema import Section
from gptmini.web.answers import EventStream, Json, Numbers, event, event_stream
from gptmini.web.catalog import Catalog, Loaded
from gptmini.web.completions import MAX_NEW_TOKENS, Ids, decoder_after, special_name
from gptmini.web.inspection import Inspection, check_ids, inspect, neighbors, next_tokens, top_tokens
from gptmini.web.jobs import Jobs
from gptmini.web.runs import RunReader

POLL_SECONDS = 1.0  # how often a run's files are looked at
_SILENT_POLLS = 15  # then a comment line keeps the connection open


class TextBody(Section):
    """A text for a model's tokenizer."""

    model: str
    text: str


class IdsBody(Section):
    """A text as token ids."""

    model: str
    ids: Ids


class AttentionBody(IdsBody):
    """One attention map of a text, or all of them where layer and head are null."""

    layer: int | None = Field(None, ge=0)
    head: int | None = Field(None, ge=0)


class TokenBody(Section):
    """One token."""

    model: str
    id: int = Field(ge=0, lt=2**31)


class GenerateBody(SamplingOptions):
    """A text to continue, and how the next token is chosen."""

    model: str
    ids: Ids = Field(description="The text so far; of one longer than the context, the end is read.")
    max_new_tokens: int = Field(200, ge=0, le=MAX_NEW_TOKENS)
    seed: int | None = Field(None, ge=0, lt=2**63)


class EngineAPI:
    """The handlers; what computes with a model waits for its turn in `jobs`."""

    def __init__(self, catalog: Catalog, jobs: Jobs) -> None:
        self.catalog, self.jobs = catalog, jobs
        self._inspected: tuple[GPT, Sequence[int], Inspection] | None = None  # the last one, for its maps
        self.router = APIRouter(prefix="/api", default_response_class=Json)
        self.router.get("/models")(self.models)
        self.router.get("/watch", response_class=EventStream)(self.watch)
        for handler in (self.tokenize, self.next, self.inspect, self.neighbors):
            self.router.post(f"/{handler.__name__}")(handler)
        self.router.post("/generate", response_class=EventStream)(self.generate)
        self.router.post("/attention", response_class=Numbers)(self.attention)

    async def models(self) -> Response:
        """What the page says of each model."""
        return Json(await asyncio.to_thread(self.catalog.infos))

    async def tokenize(self, body: TextBody) -> Response:
        """The tokens of a text; needs no turn, so that typing is answered while a model writes."""

        def tokens() -> list[dict[str, Any]]:
            tokenizer = self.catalog.load(body.model).tokenizer
            return [token_json(tokenizer, i) for i in tokenizer.encode(body.text)]

        return Json(await asyncio.to_thread(tokens))

    async def generate(self, body: GenerateBody) -> Response:
        """A stream of steps: each new token, with its probability and the likeliest in its place."""
        name, _ = self.catalog.find(body.model)
        return await event_stream(self.jobs.stream(name, partial(self._generate, body)))

    def _generate(self, body: GenerateBody) -> Iterator[dict[str, Any]]:
        model, tokenizer = self.catalog.load(body.model)
        ids = check_ids(model, body.ids)
        text = decoder_after(tokenizer, ids)
        if not ids:
            ids = encode_prompt(model, tokenizer, "", False)
            text = StreamDecoder(tokenizer, start=ids)
            if text.pop():  # a document that starts with a token of text
                yield {"token": token_json(tokenizer, ids[0]), "probability": None, "top": []}
        sampling = body.model_dump(include={*SamplingOptions.model_fields, "seed"})
        for _, token, logits in continue_texts(model, [ids], [text], body.max_new_tokens, **sampling):
            values = logits.log_softmax(dim=-1)  # (V,), before temperature and the other options
            probability = shorten(values[token].exp().item())
            top = top_json(tokenizer, top_tokens(values))
            yield {"token": token_json(tokenizer, token), "probability": probability, "top": top}

    async def next(self, body: IdsBody) -> Response:
        """The likeliest tokens after a text."""

        def top(loaded: Loaded) -> dict[str, Any]:
            ids = body.ids or encode_prompt(loaded.model, loaded.tokenizer, "", False)
            return {"top": top_json(loaded.tokenizer, next_tokens(loaded.model, ids))}

        return Json(await self._compute(body.model, top))

    async def inspect(self, body: IdsBody) -> Response:
        """Tokens, the surprisal of each in bits, and what each layer would already say."""

        def look(loaded: Loaded) -> dict[str, Any]:
            found, tokenizer = self._inspect(loaded, body), loaded.tokenizer
            return {
                "tokens": [token_json(tokenizer, i) for i in found.ids],
                "surprisal": [None if bits is None else shorten(bits) for bits in found.surprisal],
                "lens": [[top_json(tokenizer, top) for top in layer] for layer in found.lens],
            }

        return Json(await self._compute(body.model, look))

    async def attention(self, body: AttentionBody) -> Response:
        """Weights of one head, float32 (T, T); or of all, uint8 (n_layer, H, T, T), as weight * 255."""

        def weights(loaded: Loaded) -> bytes:
            found = self._inspect(loaded, body).attention
            if body.layer is None or body.head is None:
                return (found * 255).round().to(torch.uint8).numpy().tobytes()
            if body.layer >= found.shape[0] or body.head >= found.shape[1]:
                sizes = f"the model has {found.shape[0]} of {found.shape[1]}"
                raise UserError(f"there is no layer {body.layer} and head {body.head}: {sizes}")
            return found[body.layer, body.head].numpy().astype("<f4").tobytes()

        data = await self._compute(body.model, weights)
        return Numbers(data)

    def _inspect(self, loaded: Loaded, body: IdsBody) -> Inspection:
        """The inspection of a text: a page asks for it, and then for one map after another."""
        last = self._inspected
        if last is None or last[0] is not loaded.model or last[1] != body.ids:
            self._inspected = last = loaded.model, body.ids, inspect(loaded.model, body.ids)
        return last[2]

    async def neighbors(self, body: TokenBody) -> Response:
        """The nearest tokens in embedding space, with the cosine."""

        def nearest(loaded: Loaded) -> list[tuple[dict[str, Any], float]]:
            return top_json(loaded.tokenizer, neighbors(loaded.model, body.id))

        return Json(await self._compute(body.model, nearest))

    async def _compute(self, model_id: str, work: Any) -> Any:
        name, _ = self.catalog.find(model_id)
        return await self.jobs.run(name, lambda: work(self.catalog.load(model_id)))

    async def watch(self, run: str) -> Response:
        """A run as it goes on: server-sent events, without end."""
        reader = RunReader(self.catalog.run(run))

        async def events() -> AsyncGenerator[str, None]:
            silent = 0
            while True:
                news = await asyncio.to_thread(lambda: list(reader.events()))
                for name, data in news:
                    yield event(data, name)
                silent = 0 if news else silent + 1
                if silent % _SILENT_POLLS == _SILENT_POLLS - 1:
                    yield ": nothing new\n\n"
                await asyncio.sleep(POLL_SECONDS)

        return EventStream(events())


def token_json(tokenizer: Tokenizer, token: int) -> dict[str, Any]:
    """A token for the page; with its bytes where these are not whole characters by themselves."""
    data = tokenizer.decode_bytes([token])
    text = data.decode(errors="replace") if data else special_name(tokenizer, token)
    found = {"id": token, "text": text, "special": not data}
    return found if not data or text.encode() == data else {**found, "bytes": list(data)}


def top_json(tokenizer: Tokenizer, top: Iterable[tuple[int, float]]) -> list[tuple[dict[str, Any], float]]:
    """Tokens with a number each, for the page."""
    return [(token_json(tokenizer, token), shorten(value)) for token, value in top]


def shorten(value: float) -> float:
    """Six digits, as more only make the answer longer."""
    return float(f"{value:.6g}")
