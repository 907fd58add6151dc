import ast
import errno
import hashlib
import io
import json
import os
import sys
import tempfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest.mock import Mock

import pytest
from test_documents import texts

from gptmini.data import datasets, documents
from gptmini.data.corpus import open_corpus
from gptmini.data.datasets import NAMED, NamedCorpus, cache_folder, list_named
from gptmini.data.python_docs import _docstrings, python_docs
from gptmini.errors import UserError


def test_python_docs_are_the_interpreters_own_and_hold_no_paragraph_twice():
    sources = {document.source: b"".join(document.blocks).decode() for document in python_docs()}
    assert (
        ast.get_docstring(ast.parse(Path(json.__file__).read_text())).split("\n\n")[0]
        in sources["json/__init__.py"]
    )
    assert len(sources) > 300
    assert sum(map(len, sources.values())) > 1_000_000
    paragraphs = [" ".join(p.split()) for text in sources.values() for p in text.split("\n\n")]
    paragraphs = [p for p in paragraphs if p]
    assert len(set(paragraphs)) == len(paragraphs)


def test_an_error_of_the_machine_leaves_no_module_out(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text(f'"""Module {name}."""')
    (tmp_path / "dangling.py").symlink_to("nowhere")
    (tmp_path / "template.py").write_text("{{ no Python }")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert [source for source, _ in _docstrings()] == ["a.py", "b.py"]
    error = OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr(io, "open", Mock(side_effect=error))
    with pytest.raises(OSError, match="Too many open files"):
        list(_docstrings())


def test_python_docs_come_in_an_order_that_their_text_decides():
    digests = [hashlib.sha256(b"".join(document.blocks)).digest() for document in python_docs()]
    assert digests == sorted(digests)
    corpus = open_corpus("python-docs")
    assert corpus.python_version == ".".join(map(str, sys.version_info[:3]))
    assert texts(corpus)[0] == python_docs()[0].blocks[0]


class _Server(HTTPServer):
    """Serves one file, at first in parts of `limits` bytes, and takes note of the ranges asked for."""

    content = b""
    limits: list[int]
    ranges: list[str | None]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_HEAD(self):
        self.answer(200, self.server.content)

    def do_GET(self):
        if "served" not in self.path:  # other things that huggingface_hub asks for
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked[6:-1]) if asked else 0
        body = self.server.content[start:]
        self.answer(206 if asked else 200, body)
        limit = self.server.limits.pop(0) if self.server.limits else None
        self.wfile.write(body[:limit])

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", hashlib.sha256(self.server.content).hexdigest())  # these two for the Hub
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.limits, server.ranges = [], []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def offer(server, monkeypatch):
    """Puts a corpus `served` on the list, whose file the server has, as any server or as the Hub."""
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]:
        monkeypatch.delenv(name, raising=False)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    hub = f"https://huggingface.co/datasets/someone/texts/resolve/{'0' * 40}"

    def offer(content, file_name="served.txt", on_hub=False, **fields):
        server.content = content
        served = NamedCorpus(
            "",
            "",
            url=f"{hub if on_hub else address}/{file_name}",
            names=(file_name, "copy.txt"),
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            **fields,
        )
        monkeypatch.setitem(NAMED, "served", served)

    return offer


on_hub = pytest.mark.parametrize("on_hub", [False, True])


@on_hub
def test_a_named_corpus_is_downloaded_once(server, offer, on_hub):
    offer(b"some text", on_hub=on_hub)
    assert texts(open_corpus("served")) == texts(open_corpus("served")) == [b"some text"]
    assert server.ranges == [None]


def test_the_cache_folder_may_be_in_the_home_folder(tmp_path, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("GPTMINI_CACHE_DIR", os.path.join("~", "cache"))
    assert cache_folder() == tmp_path / "cache"


@on_hub
def test_a_copy_in_the_cache_folder_counts_if_its_digest_is_right(server, offer, on_hub):
    offer(b"some text", on_hub=on_hub)
    cache_folder().mkdir()
    (cache_folder() / "copy.txt").write_bytes(b"some text")
    assert texts(open_corpus("served")) == [b"some text"]
    assert server.ranges == []
    (cache_folder() / "copy.txt").write_bytes(b"SOME text")
    assert texts(open_corpus("served")) == [b"some text"]
    assert server.ranges == [None]


def test_a_download_from_the_hub_resumes_where_the_connection_broke(server, offer, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    offer(bytes(range(256)) * 20_000, on_hub=True)
    server.limits = [3_000_000]
    assert texts(open_corpus("served")) == [server.content]
    assert server.ranges == [None, "bytes=3000000-"]


@on_hub
def test_a_download_that_breaks_off_for_good_is_one_line(server, offer, monkeypatch, on_hub):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    offer(b"some text", on_hub=on_hub)
    server.limits = [3] * 10
    with pytest.raises(UserError, match="served: cannot be downloaded") as error:
        open_corpus("served")
    assert "\n" not in str(error.value)
    assert not (cache_folder() / "served.txt").exists()


@on_hub
def test_a_download_that_cannot_be_kept_is_one_line(server, offer, monkeypatch, tmp_path, on_hub):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("GPTMINI_CACHE_DIR", str(tmp_path / "file"))
    offer(b"some text", on_hub=on_hub)
    with pytest.raises(
        UserError, match=r"file/served.txt, or .* \(GPTMINI_CACHE_DIR names another cache folder\)"
    ):
        open_corpus("served")


@on_hub
def test_a_download_with_another_digest_is_refused(server, offer, on_hub):
    offer(b"some text", on_hub=on_hub)
    server.content = b"some tyxt"
    with pytest.raises(UserError, match=r"cannot be downloaded \(ValueError"):
        open_corpus("served")
    assert not (cache_folder() / "served.txt").exists()


def test_a_file_of_the_hub_is_looked_for_under_the_name_that_the_download_gives_it():
    on_the_hub = {name: datasets._HUB_URL.fullmatch(corpus.url) for name, corpus in NAMED.items()}
    names = [name for name, url in on_the_hub.items() if url and url[3] in NAMED[name].names]
    assert names == ["tiny-stories", "fineweb-edu"]


def test_without_a_network_the_error_says_what_to_fetch_and_what_works(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(UserError, match=r"86c4e6aa.*/tiny-shakespeare\.txt, or use python-docs") as error:
        open_corpus("tiny-shakespeare")
    assert "\n" not in str(error.value)


def test_documents_in_one_file_are_told_apart_by_a_separator_even_across_blocks(offer, monkeypatch):
    monkeypatch.setattr(documents, "BLOCK_BYTES", 4)
    offer(b"\none\n<|endoftext|>\ntwo <|endoftext|>\n", separator=b"<|endoftext|>")
    assert texts(open_corpus("served")) == [b"one", b"two"]


def test_a_file_in_a_zip_file_is_read_without_unpacking_it(offer):
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inner", b"text " * 500_000)
        file.seek(0)
        offer(file.read(), "served.zip", member="inner")
    assert texts(open_corpus("served")) == [b"text " * 500_000]


def test_the_list_shows_every_named_corpus_with_size_and_licence():
    lines = list_named().splitlines()
    assert [line.split()[0] for line in lines] == list(NAMED)
    assert next(line for line in lines if line.startswith("enwik8")).split()[1:4] == [
        "36",
        "MB",
        "CC-BY-SA-3.0",
    ]
