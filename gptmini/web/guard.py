"""What every request has to pass: its host, origin, token, size and time; and the headers of every answer."""

import asyncio
import hmac
import ipaddress
import json
import traceback
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, TypeAlias

import anyio
from uvicorn.protocols.http.h11_impl import H11Protocol

from gptmini.web.answers import error_object

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 1 << 20
REQUEST_SECONDS = 20.0  # for the head of a request, and again for its body
SEND_SECONDS = 60.0  # for a client to take what was computed for it

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class RefusedError(Exception):
    """A request that is not answered: with which status, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Guard:
    """An ASGI app around another one: lets through what a page of this server, or a program, sends."""

    def __init__(self, app: App, hosts: Collection[str], token: str | None = None) -> None:
        """`hosts` are the names under which this machine is asked; numeric addresses pass anyway, as no
        foreign site can give itself one. With a token, every path begins with it, or a header holds it."""
        self.app, self.hosts, self.token = app, {host.lower() for host in hosts}, token

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        send = _with_headers(send)
        try:
            self._check_source(headers)
            scope = self._check_token(scope, headers)
            with anyio.fail_after(REQUEST_SECONDS):
                body = await _read_body(headers, receive)
        except RefusedError as error:
            await _refuse(send, error)
        except TimeoutError:
            await _refuse(
                send, RefusedError(408, f"the request took longer than {REQUEST_SECONDS:.0f} s to come")
            )
        else:
            if body is not None:
                await _until_gone(self.app, scope, body, receive, send)

    def _check_source(self, headers: dict[str, str]) -> None:
        """Against DNS rebinding, and against pages of other sites that send requests here."""
        host = headers.get("host", "")
        if not self._is_own(host):
            raise RefusedError(
                403, f"the host {host!r:.100} is none of this server's: ask for localhost or its address"
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise RefusedError(
                403, f"a page of another origin, {origin!r:.100}, asks: only this server's own may"
            )

    def _is_own(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        name = name.removeprefix("[").removesuffix("]").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.hosts
        return True

    def _check_token(self, scope: Message, headers: dict[str, str]) -> Message:
        """The scope without the token in its path."""
        if self.token is None:
            return scope
        first, slash, rest = scope["path"][1:].partition("/")
        if slash and _is_equal(first, self.token):
            return {**scope, "path": f"/{rest}"}
        if _is_equal(headers.get("authorization", ""), f"Bearer {self.token}"):
            return scope
        raise RefusedError(401, "this address needs the token that gptmini serve printed with it")


def _is_equal(given: str, token: str) -> bool:
    """In a time that does not tell how far they are equal."""
    return hmac.compare_digest(given.encode(), token.encode())


async def _read_body(headers: dict[str, str], receive: Receive) -> bytes | None:
    """The whole body, or None where the client has gone before its end."""
    too_large = RefusedError(413, f"the body is larger than {MAX_BODY_BYTES:,} bytes")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise too_large
        if not message.get("more_body", False):
            return bytes(body)


async def _until_gone(app: App, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
    """Run the app until it has answered, or the client has gone: then it is cancelled, and its work ends."""
    gone = asyncio.ensure_future(receive())  # after the body, only a disconnect comes
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return unread.pop() if unread else await asyncio.shield(gone)

    answering = asyncio.ensure_future(app(scope, replay, send))
    try:
        await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
        if answering.done() and (error := answering.exception()):
            traceback.print_exception(error)  # a bug, which was answered with status 500
    finally:
        answering.cancel()
        gone.cancel()


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            added = ((name.encode(), value.encode()) for name, value in _HEADERS.items())
            message["headers"] = [*message["headers"], *(pair for pair in added if pair[0] not in given)]
        await send(message)

    return send_with_headers


async def _refuse(send: Send, error: RefusedError) -> None:
    body = json.dumps(error_object(str(error), error.status)).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 by uvicorn, with limits on the time for the head of a request, and for taking the answer."""

    _deadline: asyncio.TimerHandle | None = None

    def _start_clock(self, seconds: float) -> None:
        self._stop_clock()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Expect a request soon."""
        super().connection_made(transport)
        self._start_clock(REQUEST_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Stop the clock when a head is whole; start it with the first byte of the next."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_clock()
        elif self._deadline is None and before.response_complete:
            self._start_clock(REQUEST_SECONDS)

    def pause_writing(self) -> None:
        """The client does not read what is sent to it."""
        super().pause_writing()
        self._start_clock(SEND_SECONDS)

    def resume_writing(self) -> None:
        """It has read on."""
        super().resume_writing()
        self._stop_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more to wait for."""
        self._stop_clock()
        super().connection_lost(exc)
