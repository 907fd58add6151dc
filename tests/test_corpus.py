import ast
import gzip
import hashlib
import io
import itertools
import json
import os
import sys
import tempfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiktoken_ext.openai_public import r50k_pat_str

from gptmini.data import corpus as corpus_module
from gptmini.data import documents
from gptmini.data.corpus import Chunk, Corpus, open_corpus
from gptmini.data.datasets import NAMED, NamedCorpus, cache_folder, list_named
from gptmini.data.documents import Document
from gptmini.data.python_docs import python_docs
from gptmini.errors import UserError


def texts(corpus: Corpus) -> list[bytes]:
    """The corpus's documents, put together from their chunks."""
    documents, data = [], b""
    for chunk in corpus.chunks():
        assert chunk.offset == len(data)
        data += chunk.data
        if chunk.ends_document:
            documents.append(data)
            data = b""
    assert data == b"", "the last chunk ends its document"
    return documents


def in_memory(*texts: bytes, **fields) -> Corpus:
    return Corpus("texts", (lambda: iter([Document("a", [text]) for text in texts]),), **fields)


# ---------------------------------------------------------------------------------------- files


def test_a_file_is_one_document_whatever_its_suffix(tmp_path):
    (tmp_path / "notes.xyz").write_bytes(b"one\r\n\xfftwo")
    assert texts(open_corpus(str(tmp_path / "notes.xyz"))) == [b"one\r\n\xfftwo"]


def test_a_folder_is_read_recursively_in_sorted_order_without_hidden_and_binary_files(tmp_path):
    for name in ["b.md", "a/z.txt", "a/B.TXT", "c.png", ".hidden.txt", ".git/x.txt", "zz.txt.gz"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        data = name.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert texts(open_corpus(str(tmp_path))) == [b"a/B.TXT", b"a/z.txt", b"b.md", b"zz.txt.gz"]


def test_globs_and_lists_read_each_file_once(tmp_path):
    for name in ["a.log", "b.log", "sub/c.log"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    corpus = open_corpus((str(tmp_path / "b.log"), str(tmp_path / "**/*.log"), f"{tmp_path}/./b.log"))
    assert texts(corpus) == [b"b.log", b"a.log", b"sub/c.log"]


def test_gzip_is_unpacked(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text " * 1000))
    assert texts(open_corpus(str(tmp_path / "a.txt.gz"))) == [b"text " * 1000]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.gz"])
def test_each_line_of_json_lines_is_a_document(tmp_path, name):
    lines = '{"id": 1, "text": "é\\n"}\n\n{"text": "two"}'.encode()
    (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    assert texts(open_corpus(str(tmp_path / name))) == ["é\n".encode(), b"two"]


def test_the_text_field_of_json_lines_can_be_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "no", "story": "yes"}')
    assert texts(open_corpus(str(tmp_path / "a.jsonl"), text_field="story")) == [b"yes"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a\.jsonl:2: not a line of JSON"),
        ("[" * 100_000, r"a\.jsonl:2: not a line of JSON"),
        ('{"story": "x", "id": 1}', r"a\.jsonl:2: has no text in the field text: it has story, id"),
        ('{"text": 3}', r"a\.jsonl:2: has no text in the field text: it is 3$"),
        ('{"text": null}', r"a\.jsonl:2: has no text in the field text: it is null$"),
        ('["x"]', r"a\.jsonl:2: .* it is no JSON object"),
    ],
)
def test_a_line_without_text_is_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(UserError, match=message):
        texts(open_corpus(str(tmp_path / "a.jsonl")))


def test_each_row_of_parquet_is_a_document(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", "zwei é"] * 300, "id": range(600)}), path)
    assert texts(open_corpus(str(path))) == [b"one", "zwei é".encode()] * 300
    with pytest.raises(UserError, match="has no column story: it has text, id"):
        texts(open_corpus(str(path), text_field="story"))
    path.write_bytes(b"PAR1 not parquet")
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read"):
        texts(open_corpus(str(path)))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="reading parquet needs pyarrow: pip install pyarrow"):
        texts(open_corpus(str(tmp_path / "a.parquet")))


@pytest.fixture
def _piped(monkeypatch):
    documents._standard_input.cache_clear()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped text")))
    yield
    documents._standard_input().close()
    documents._standard_input.cache_clear()


@pytest.mark.usefixtures("_piped")
def test_standard_input_can_be_read_more_than_once():
    assert texts(open_corpus("-")) == texts(open_corpus("-")) == [b"piped text"]


def test_standard_input_from_the_keyboard_is_refused(monkeypatch):
    documents._standard_input.cache_clear()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(UserError, match="pipe a text in"):
        texts(open_corpus("-"))


# ---------------------------------------------------------------------------------------- mistakes


def test_a_missing_path_suggests_the_nearest_named_corpus(tmp_path):
    with pytest.raises(UserError, match=r"pyton-docs: no such file .* did you mean python-docs\?"):
        open_corpus("pyton-docs")
    with pytest.raises(UserError, match="no such file or folder"):
        open_corpus(str(tmp_path / "missing.txt"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [("folder", "holds no text file; the suffixes"), ("*.nothing", "no file matches this pattern")],
)
def test_nothing_to_read_is_refused(tmp_path, entry, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match=message):
        open_corpus(str(tmp_path / entry))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match=r"pipe\.txt: a pipe or device, .* give - instead"):
        open_corpus(str(tmp_path / "pipe.txt"))
    with pytest.raises(UserError, match=r"data\.val_corpus = /dev/null: a pipe or device"):
        open_corpus("/dev/null", key="data.val_corpus")
    (tmp_path / "a.txt").write_text("text")
    assert texts(open_corpus(str(tmp_path))) == [b"text"]


def test_a_corpus_without_text_is_refused(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match="holds no text"):
        _ = open_corpus(str(tmp_path)).contents


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
@pytest.mark.parametrize(
    "damage", [lambda data: b"plain", lambda data: data[:-9], lambda data: data[:20] * 2]
)
def test_a_damaged_gzip_file_is_named(tmp_path, name, damage):
    (tmp_path / name).write_bytes(damage(gzip.compress(b'{"text": "some words"}\n' * 100)))
    with pytest.raises(UserError, match=rf"{name}: cannot be read"):
        texts(open_corpus(str(tmp_path / name)))


def test_a_file_that_goes_away_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    corpus = open_corpus(str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a\.txt: cannot be read: No such file"):
        texts(corpus)


# ---------------------------------------------------------------------------------------- chunks

ENCODING = tiktoken.Encoding(
    "words",
    pat_str=r50k_pat_str,
    mergeable_ranks={bytes([b]): b for b in range(256)}
    | {
        token: 256 + i for i, token in enumerate([b"  ", b" a", b"ab", b"\n\n", b" 1", b"\xc2\xa0", b"\xa0 "])
    },
    special_tokens={},
)


@settings(max_examples=300)
@given(st.text(alphabet="ab1'. \t\n\r\x1c\x85\xa0\u2028\u3000é你🙂", min_size=40))
@example("ab  \xa0 a\u3000 b\n\n 1 ab" * 5)
def test_the_ids_of_chunks_are_those_of_the_whole_text(text):
    data = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "CHUNK_BYTES", 16)
        chunks = list(corpus_module._cut("a", [data]))
        cuts = [chunk.offset for chunk in chunks[1:]]
    assert b"".join(chunk.data for chunk in chunks) == data
    if all(data[cut] in b" \t\n\r" and not data[:cut].decode()[-1].isspace() for cut in cuts):
        ids = [i for chunk in chunks for i in ENCODING.encode_ordinary(chunk.data.decode())]
        assert ids == ENCODING.encode_ordinary(text)


def test_a_long_text_is_read_in_chunks_that_end_before_whitespace(tmp_path):
    text = "".join(f"word{i}  and\n\tmore\u3000 " for i in range(100_000)).encode()
    (tmp_path / "a.txt").write_bytes(text)
    chunks = list(open_corpus(str(tmp_path / "a.txt")).chunks())
    assert b"".join(chunk.data for chunk in chunks) == text
    assert [chunk.ends_document for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    for before, after in itertools.pairwise(chunks):
        assert len(before.data) <= corpus_module.CHUNK_BYTES
        assert not before.data.decode()[-1].isspace()
        assert after.data[:1].isspace()
    whole = ENCODING.encode_ordinary(text.decode())
    assert [i for chunk in chunks for i in ENCODING.encode_ordinary(chunk.data.decode())] == whole


def test_a_text_without_whitespace_is_cut_between_characters():
    text = "é你🙂" * 400_000
    chunks = list(corpus_module._cut("a", [text.encode()]))
    assert len(chunks) == -(-len(text.encode()) // corpus_module.CHUNK_BYTES)
    assert "".join(chunk.data.decode() for chunk in chunks) == text


def test_bytes_that_are_no_text_are_cut_too():
    data = b"\x80" * 1_000_000
    assert b"".join(chunk.data for chunk in corpus_module._cut("a", [data])) == data


@given(
    st.lists(st.binary(max_size=9)),
    st.sampled_from(["replace", "ignore"]),
)
@example([b"\xe4\xbd", b"\xa0\xff", b"\xe4"], "replace")
def test_bad_bytes_are_decoded_as_python_would(blocks, errors):
    corpus = Corpus("a", (lambda: iter([Document("a", blocks)]),), errors=errors)
    decoded = b"".join(chunk.data for chunk in corpus.chunks())
    assert decoded.decode() == b"".join(blocks).decode(errors=errors)


def test_a_sample_is_bounded_and_spread_over_the_text():
    texts = [f"text number {i:03}".encode() for i in range(100)]
    assert list(in_memory(*texts).texts(10_000)) == [text.decode() for text in texts]
    spread = list(in_memory(*texts).texts(150))
    assert spread == ["text number 000", "text number 010", "text number 020"] + [
        f"text number {i:03}" for i in range(30, 100, 10)
    ]
    assert list(in_memory(*texts).texts(10_000, end=20)) == ["text number 000", "text "]


# ---------------------------------------------------------------------------------------- contents


def test_contents_count_documents_and_bytes_and_name_them_by_a_digest():
    contents = in_memory(b"one", b"", b"three").contents
    assert contents.document_bytes.tolist() == [3, 5]
    assert contents.total_bytes == 8
    assert contents.digest == in_memory(b"one", b"three").contents.digest
    others = [in_memory(b"onet", b"hree"), in_memory(b"onethree"), in_memory(b"three", b"one")]
    assert len({contents.digest, *(other.contents.digest for other in others)}) == 4


def test_the_digest_depends_on_text_and_not_on_names(tmp_path):
    for folder in ["a", "b"]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.txt").write_text("same")
    digests = {open_corpus(str(tmp_path / folder)).contents.digest for folder in ["a", "b"]}
    assert len(digests) == 1


# ---------------------------------------------------------------------------------------- named


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


def test_chunks_say_where_they_come_from(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}')
    first, second = open_corpus(str(tmp_path)).chunks()
    assert first == Chunk(b"one", f"{tmp_path}/a.jsonl:1", 0, True)
    assert second.source == f"{tmp_path}/a.jsonl:2"
