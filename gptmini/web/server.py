"""The server: the page, its engine over HTTP, OpenAI's completions, and where it listens."""

import asyncio
import contextlib
import errno
import logging
import secrets
import socket
import subprocess
import sys
import webbrowser
from collections.abc import Iterator
from functools import cache, partial
from importlib.resources import files
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any, get_type_hints

import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from gptmini import __version__
from gptmini.errors import MissingPackageError, UserError
from gptmini.schema import validate
from gptmini.web.answers import STATUS, Json, error_answer, error_object, event_stream
from gptmini.web.catalog import Catalog
from gptmini.web.completions import Answer, CompletionRequest, complete, read_prompts
from gptmini.web.engine_api import EngineAPI
from gptmini.web.guard import BoundedProtocol, Guard
from gptmini.web.jobs import Jobs

MAX_CONNECTIONS = 256
SHUTDOWN_SECONDS = 1
MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


def build_app(catalog: Catalog) -> FastAPI:
    """The app, without the guard that stands before it."""
    error: dict[str, Any] = {"description": "An error, as OpenAI's clients read it."}
    # Its own documentation pages would load scripts from elsewhere; the schema is at /openapi.json.
    app = FastAPI(
        title="gptmini",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        responses={"4XX": error, "5XX": error},
    )
    jobs = Jobs()
    app.include_router(EngineAPI(catalog, jobs).router)
    app.include_router(OpenAIAPI(catalog, jobs).router)
    app.get("/", include_in_schema=False)(partial(source_file, "page.html"))
    app.get("/{name}", include_in_schema=False)(source_file)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    for kind in STATUS:
        app.add_exception_handler(kind, _known_error)
    app.add_exception_handler(Exception, _unknown_error)
    return app


async def _known_error(request: Request, error: Exception) -> Response:
    return error_answer(error)


async def _unknown_error(request: Request, error: Exception) -> Response:
    """A bug: the guard prints it."""
    return Json(
        error_object(f"the server failed ({type(error).__name__}): its terminal says where", 500), 500
    )


async def _http_error(request: Request, error: Any) -> Response:
    return Json(error_object(str(error.detail), error.status_code), error.status_code, error.headers)


async def _invalid_request(request: Request, error: Any) -> Response:
    """A body or query that the schema refuses, in the words in which a config's mistakes are told."""
    schema = get_type_hints(request.scope["endpoint"]).get("body")
    try:
        if schema and isinstance(error.body, dict):
            validate(schema, error.body, "request")
    except UserError as explained:
        return error_answer(explained)
    first = error.errors()[0]
    return Json(error_object(f"{first['loc'][-1]}: {first['msg']}", 400), 400)


async def source_file(name: str) -> Response:
    """A file of the page, as it lies in the package; nothing else has a name here."""
    if name == "vega.js":
        try:
            return Response(await asyncio.to_thread(_plotting_library), media_type="text/javascript")
        except MissingPackageError as error:
            raise HTTPException(404, str(error)) from None
    media_type = MEDIA_TYPES.get(name.rpartition(".")[2])
    for package in ("gptmini.web", "gptmini.report"):
        # Compared with what is there, so that no name leads out of the folder.
        if media_type and name in (found.name for found in files(package).iterdir()):
            return Response((files(package) / name).read_bytes(), media_type=f"{media_type}; charset=utf-8")
    raise HTTPException(404, f"there is no {name!r:.100} here")


@cache
def _plotting_library() -> bytes:
    """Vega-Lite, made in a process of its own: it takes seconds in which no other thread of that one runs."""
    if find_spec("vl_convert") is None:
        raise MissingPackageError("the report", "vl-convert-python")
    script = "import sys; from gptmini.report import one_file; sys.stdout.write(one_file.plotting_library())"
    return subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE).stdout


class OpenAIAPI:
    """/v1/completions and /v1/models, for OpenAI's clients."""

    def __init__(self, catalog: Catalog, jobs: Jobs) -> None:
        self.catalog, self.jobs = catalog, jobs
        self.router = APIRouter(prefix="/v1", default_response_class=Json)
        self.router.get("/models")(self.models)
        self.router.get("/models/{model_id:path}")(self.model)
        streamed: dict[str, Any] = {"content": {"text/event-stream": {}}}
        self.router.post("/completions", responses={200: streamed})(self.completions)

    async def models(self) -> Response:
        """The models that are served."""
        return Json({"object": "list", "data": [self._model(name) for name in self.catalog.folders()]})

    async def model(self, model_id: str) -> Response:
        """One of them."""
        return Json(self._model(model_id))

    def _model(self, model_id: str) -> dict[str, Any]:
        _, folder = self.catalog.find(model_id)
        created = int(folder.stat().st_mtime)
        return {"id": model_id, "object": "model", "created": created, "owned_by": "gptmini"}

    async def completions(self, body: CompletionRequest) -> Response:
        """Continue one or more prompts, in one answer or in a stream of chunks."""
        name, _ = self.catalog.find(body.model)
        pieces = self.jobs.stream(name, partial(self._complete, body))
        answer = await anext(pieces)
        if body.stream:
            return await event_stream(answer.chunks(pieces))
        return Json(answer.whole([piece async for piece in pieces]))

    def _complete(self, body: CompletionRequest) -> Iterator[Any]:
        """The answer, still empty, and then the pieces of its texts."""
        loaded = self.catalog.load(body.model)
        yield Answer(loaded.tokenizer, body, read_prompts(loaded, body))
        yield from complete(loaded, body)


def serve(catalog: Catalog, host: str, port: int, open_browser: bool) -> None:
    """Listen until Ctrl-C. Raises UserError for a host that is none, OSError where the port is taken."""
    listener = _listen(host, port)
    port = listener.getsockname()[1]
    token = None if _is_loopback(listener) else secrets.token_urlsafe(16)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}/" + (f"{token}/" if token else "")
    if token:
        print("other machines reach this server: whoever has the address with its token", file=sys.stderr)
    print(f"{', '.join(catalog.folders())}: {url} (Ctrl-C ends the server)", flush=True)
    if open_browser:
        webbrowser.open(url)
    guarded = Guard(build_app(catalog), {host, "localhost", socket.gethostname()}, token)
    config = uvicorn.Config(
        guarded,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=1 << 15,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a client that has gone is no news
    uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as on_failure:
            listener = on_failure.enter_context(socket.socket(family, kind))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
            on_failure.pop_all()  # it stays open
            return listener
    except (socket.gaierror, UnicodeError):
        raise UserError(f"--host = {host}: no such host: give a name or an address of this machine") from None
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"--host = {host}: is no address of this machine") from None
        advice = ": choose another --port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else ""
        raise OSError(error.errno, f"{error.strerror}{advice}", f"{host}:{port}") from None


def _is_loopback(listener: socket.socket) -> bool:
    return ip_address(listener.getsockname()[0]).is_loopback
