import gzip
import io
import os
import sys

import pytest

from gptmini.data import documents
from gptmini.data.corpus import Corpus, open_corpus
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
    with pytest.raises(UserError, match=r"reading parquet needs pyarrow: .* -m pip install pyarrow"):
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
