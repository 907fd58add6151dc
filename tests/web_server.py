"""A small run, and a server in a thread that serves it, for the tests of gptmini/web."""

import contextlib
import socket
import threading

import uvicorn

import gptmini
from gptmini.web.catalog import Catalog
from gptmini.web.guard import BoundedProtocol, Guard
from gptmini.web.server import build_app

TEXT = "To be, or not to be, that is the question. Ägypten, 東京 and 🙂.\n" * 40


def train_run(folder, kind="bytes", **train):
    """A run of four steps with two checkpoints, 2 and 4; returns its folder."""
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    run = folder / "runs" / "tiny"
    gptmini.train(
        {
            "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 32},
            "data": {"corpus": str(folder / "text.txt")},
            "tokenizer": {"kind": kind},
            "train": {
                "out_dir": str(run), "max_steps": 4, "batch_size": 4, "eval_interval": 2,
                "checkpoint_interval": 2, "keep_checkpoints": 2, "sample_interval": 2,
                "log_interval": 1, **train,
            },
            "runtime": {"device": "cpu", "threads": 1},
        },
        quiet=True,
    )  # fmt: skip
    return run


@contextlib.contextmanager
def running(*paths, token=None, app=None):
    """Serve these checkpoints in a thread; yields the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    guarded = Guard(app or build_app(Catalog([str(path) for path in paths])), {"localhost"}, token)
    config = uvicorn.Config(
        guarded, http=BoundedProtocol, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://localhost:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def error_of(response):
    """Status and message of an error, in OpenAI's form."""
    return response.status_code, response.json()["error"]["message"]
