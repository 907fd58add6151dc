import ast
import hashlib
import json
import sys
import tempfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from test_documents import texts

from gptmini.data import documents
from gptmini.data.corpus import open_corpus
from gptmini.data.datasets import NAMED, NamedCorpus, cache_folder, list_named
from gptmini.data.python_docs import python_docs
from gptmini.errors import UserError


def test_python_docs_are_the_interpreters_own_and_hold_no_paragraph_twice():
    sources = dict(python_docs())
    assert (
        ast.get_docstring(ast.parse(Path(json.__file__).read_text())).split("\n\n")[0]
        in sources["json/__init__.py"]
    )
    assert len(sources) > 300
    assert sum(map(len, sources.values())) > 1_000_000
    paragraphs = [" ".join(p.split()) for text in sources.values() for p in text.split("\n\n")]
    paragraphs = [p for p in paragraphs if p]
    assert len(set(paragraphs)) == len(paragraphs)


def test_python_docs_come_in_an_order_that_their_text_decides():
    digests = [hashlib.sha256(text.encode()).digest() for _, text in python_docs()]
    assert digests == sorted(digests)
    corpus = open_corpus("python-docs")
    assert corpus.python_version == ".".join(map(str, sys.version_info[:3]))
    assert texts(corpus)[0] == python_docs()[0][1].encode()


class _Server(HTTPServer):
    """Serves one file, breaking off after `limit` bytes, and takes note of the ranges that are asked for."""

    content = b""
    limit: int | None = None
    ranges: list[str | None]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked[6:-1]) if asked else 0
        if start >= len(self.server.content):
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        body = self.server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.limit])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.ranges = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def offer(server, monkeypatch):
    """Puts a corpus `served` on the list, whose file the server has."""
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]:
        monkeypatch.delenv(name, raising=False)

    def offer(content, file_name="served.txt", **fields):
        server.content = content
        url = f"http://127.0.0.1:{server.server_port}/x"
        digest = hashlib.sha256(content).hexdigest()
        served = NamedCorpus("", "", url, file_name, digest, len(content), ("copy.txt",), **fields)
        monkeypatch.setitem(NAMED, "served", served)

    return offer


def test_a_named_corpus_is_downloaded_once(server, offer):
    offer(b"some text")
    assert texts(open_corpus("served")) == texts(open_corpus("served")) == [b"some text"]
    assert server.ranges == [None]


def test_a_copy_in_the_cache_folder_counts_if_its_digest_is_right(server, offer):
    offer(b"some text")
    cache_folder().mkdir()
    (cache_folder() / "copy.txt").write_bytes(b"some text")
    assert texts(open_corpus("served")) == [b"some text"]
    assert server.ranges == []
    (cache_folder() / "copy.txt").write_bytes(b"SOME text")
    assert texts(open_corpus("served")) == [b"some text"]
    assert server.ranges == [None]


def test_a_broken_download_resumes_where_it_stopped(server, offer):
    offer(bytes(range(256)) * 20_000)
    server.limit = 3_000_000
    with pytest.raises(UserError, match="served: cannot be downloaded"):
        open_corpus("served")
    server.limit = None
    assert texts(open_corpus("served")) == [server.content]
    assert server.ranges == [None, f"bytes={3_000_000 // documents.BLOCK_BYTES * documents.BLOCK_BYTES}-"]
    assert not list(cache_folder().glob("*.part"))


def test_a_part_of_another_file_does_not_spoil_the_download(server, offer):
    offer(b"some text")
    cache_folder().mkdir()
    part = hashlib.sha256(NAMED["served"].url.encode()).hexdigest()[:16] + ".part"
    (cache_folder() / part).write_bytes(b"something longer than the file")
    with pytest.raises(UserError, match="cannot be downloaded"):
        open_corpus("served")
    assert texts(open_corpus("served")) == [b"some text"]


def test_a_download_with_another_digest_is_refused(server, offer):
    offer(b"some text")
    server.content = b"some tyxt"
    with pytest.raises(UserError, match=r"cannot be downloaded \(ValueError"):
        open_corpus("served")
    assert not (cache_folder() / "served.txt").exists()


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
