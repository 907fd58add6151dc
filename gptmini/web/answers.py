"""The forms of an answer: JSON, server-sent events, and errors as OpenAI's clients read them."""

import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse, StreamingResponse

from gptmini.errors import DamagedError, DivergedError, OutOfMemoryError, UserError
from gptmini.web.catalog import NotServedError
from gptmini.web.jobs import RETRY_AFTER_SECONDS, BusyError

STATUS = {  # of the first class that fits
    NotServedError: 404,
    UserError: 400,
    BusyError: 503,
    OutOfMemoryError: 503,
    DamagedError: 500,
    DivergedError: 500,
}


class Json(JSONResponse):
    """JSON in ASCII: half of a surrogate pair, which a request may hold, has no UTF-8."""

    def render(self, content: Any) -> bytes:
        """The bytes of the answer."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class Numbers(Response):
    """The bytes of an array."""

    media_type = "application/octet-stream"


def error_object(message: str, status: int) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kinds = {401: "authentication_error", 404: "not_found_error", 503: "overloaded_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def error_answer(error: Exception) -> Response:
    """The answer to a request that raised one of the errors above."""
    status = next(status for kind, status in STATUS.items() if isinstance(error, kind))
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)} if status == 503 else None
    return Json(error_object(str(error), status), status, headers)


def event(data: Any, name: str | None = None) -> str:
    """One server-sent event."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, allow_nan=False, separators=(',', ':'))}\n\n"


class EventStream(StreamingResponse):
    """Server-sent events, from a generator that is closed at once when the client has gone."""

    media_type = "text/event-stream"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send them."""
        async with contextlib.aclosing(self.body_iterator):  # type: ignore[type-var]  # a generator
            await super().__call__(scope, receive, send)


async def event_stream(items: AsyncGenerator[Any, None]) -> Response:
    """Each item as an event, then [DONE]. An error before the first is the answer's status; a later one
    stands in the stream."""
    try:
        first = [await anext(items)]
    except StopAsyncIteration:  # nothing was to be generated
        first = []

    async def events() -> AsyncGenerator[str, None]:
        async with contextlib.aclosing(items):
            try:
                for item in first:
                    yield event(item)
                async for item in items:
                    yield event(item)
            except tuple(STATUS) as error:
                yield event(error_object(str(error), 500))
                return
        yield "data: [DONE]\n\n"

    return EventStream(events())
