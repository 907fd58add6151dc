import errno
import gzip
import io
import json
import os
import sys
import tracemalloc

import pytest

from gptmini.data import corpus as corpus_module
from gptmini.data import documents
from gptmini.data.corpus import Corpus, open_corpus
from gptmini.errors import UserError


def texts(corpus: Corpus) -> list[bytes]:
    """The corpus's documents, put together from their chunks."""
    documents, data = [], b""
    for chunk in corpus.chunks():
        assert chunk.offset - len(data) in (0, 3)  # 3: behind a byte order mark
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
    (tmp_path / "link.txt").symlink_to("pipe.txt")
    with pytest.raises(UserError, match=r"link\.txt: a pipe or device"):
        open_corpus(str(tmp_path / "link.txt"))
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


@pytest.mark.parametrize(
    ("error", "raised"), [(errno.EIO, OSError), (errno.EMFILE, OSError), (errno.EACCES, UserError)]
)
def test_a_fault_of_the_machine_is_none_of_the_users(tmp_path, monkeypatch, error, raised):
    (tmp_path / "a.txt").write_text("x")
    corpus = open_corpus(str(tmp_path / "a.txt"))

    def fail(*args):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises((OSError, UserError), match=os.strerror(error)) as caught:
        texts(corpus)
    assert isinstance(caught.value, raised)


def test_closed_standard_input_is_one_line(monkeypatch):
    documents._standard_input.cache_clear()
    for closed in (None, io.TextIOWrapper(io.BytesIO())):
        if closed is not None:
            closed.close()
        monkeypatch.setattr(sys, "stdin", closed)
        with pytest.raises(UserError, match=r"standard input is closed, .* pipe a text in"):
            texts(open_corpus("-"))


# ------------------------------------------------------------------------------------ what is no plain text

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.json", "a.csv"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    data = b'{"text": "one"}' if ".json" in name else b"one"
    for i in (1, 2):
        path = tmp_path / f"{i}{name}"
        path.write_bytes(gzip.compress(BOM + data) if name.endswith("gz") else BOM + data)
    for errors in ("strict", "replace"):
        assert texts(open_corpus(str(tmp_path), errors=errors)) == [b"one", b"one"]


def test_a_byte_order_mark_counts_in_the_place_of_a_bad_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(BOM + b"ab\xff")
    with pytest.raises(UserError, match="not UTF-8 text at byte 5 "):
        list(open_corpus(str(tmp_path)).texts())


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("Grüße aus dem Süden.\r\n".encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        ("Some plain words.\r\n".encode("utf-16-le"), "UTF-16 text: .* -f UTF-16LE "),
        ("Some plain words.\r\n".encode("utf-16-be"), "UTF-16 text: .* -f UTF-16BE "),
        ("Привет, как дела?\n".encode("utf-16-le"), "UTF-16 text: .* -f UTF-16LE "),
        ("नमस्ते दुनिया\n".encode("utf-16-be"), "UTF-16 text: .* -f UTF-16BE "),
        ("Grüße aus dem Süden.\r\n".encode("utf-32"), "UTF-32 text: save it as UTF-8, .* -f UTF-32 "),
        ("\ufeffA word.\r\n".encode("utf-32-be"), "UTF-32 text: .* -f UTF-32 "),
        ("Some plain words.\r\n".encode("utf-32-le"), "UTF-32 text: .* -f UTF-32LE "),
        ("Some plain words.\r\n".encode("utf-32-be"), "UTF-32 text: .* -f UTF-32BE "),
        ("Привет🙂".encode("utf-32-le"), "UTF-32 text: .* -f UTF-32LE "),
        ("你好吗🙂".encode("utf-32-be"), "UTF-32 text: .* -f UTF-32BE "),
        (b"PK\x03\x04\x14\x00\x06\x00[Content_Types].xml", r"a zip archive, as \.docx \(Word\)"),
        (b"%PDF-1.7\n1 0 obj <<>> endobj", "a PDF: extract its text"),
        (b"{\\rtf1\\ansi Hello}", "a rich text file"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "a picture"),
        (b"notes.txt".ljust(257, b"\x00") + b"ustar\x0000", "a tar archive"),
        (gzip.compress(b"notes.txt".ljust(257, b"\x00") + b"ustar\x0000"), "a tar archive"),
        (gzip.compress(b"text"), r"a compressed file: unpack it first \(gzip"),
    ],
)
@pytest.mark.parametrize("errors", ["strict", "replace"])
def test_another_format_is_named_with_what_to_do(tmp_path, data, what, errors):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UserError, match=f"a.txt: seems to be {what}"):
        list(open_corpus(str(tmp_path / "a.txt"), errors=errors).texts())


def test_bytes_that_are_no_text_are_read_as_they_are_by_the_tokenizer_for_bytes(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"PK\x03\x04\x00\xff")
    assert texts(open_corpus(str(tmp_path / "a.bin"))) == [b"PK\x03\x04\x00\xff"]


# ---------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"text": "one"}, {"text": "two"}]', [b"one", b"two"]),
        ('[\n "one",\n "two"\n]', [b"one", b"two"]),
        ('{\n "id": 1,\n "text": "one"\n}', [b"one"]),
        ('{"text": "one"}\n{"text": "two"}\n', [b"one", b"two"]),
    ],
)
def test_json_is_read_as_documents(tmp_path, content, expected):
    (tmp_path / "a.json").write_text(content)
    for entry in (tmp_path, tmp_path / "a.json"):
        assert texts(open_corpus(str(entry))) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '[{"text": "one"}, {"story": "two"}]',
            r"a\.json, item 2: has no text in the field text: it has story",
        ),
        ('{"text": ["one", "two"]}', r'a\.json: has no text in the field text: it is \["one", "two"\]'),
        ('{"text": "one"}\n{"story": "two"}\n', r"a\.json:2: has no text in the field text: it has story"),
    ],
)
def test_json_without_texts_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    for entry in (tmp_path, tmp_path / "a.json"):
        with pytest.raises(UserError, match=message):
            texts(open_corpus(str(entry)))


@pytest.mark.parametrize("content", ['{"name": "package"}', "[1, 2]", "{// a comment\n}", "3"])
def test_other_json_is_a_text_in_a_folder_and_a_mistake_where_it_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert texts(open_corpus(str(tmp_path))) == [content.encode()]
    with pytest.raises(UserError, match=r"a\.json.*: (has no text in the field text|not JSON)"):
        texts(open_corpus(str(tmp_path / "a.json")))


# ----------------------------------------------------------------------------------------- long documents


def test_a_document_of_one_long_line_is_cut_in_linear_time(tmp_path, monkeypatch):
    line = "words and " * 10_000
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": line}))
    looked_at, last_boundary = [], corpus_module._last_boundary
    monkeypatch.setattr(corpus_module, "CHUNK_BYTES", 100)
    monkeypatch.setattr(
        corpus_module, "_last_boundary", lambda data: looked_at.append(len(data)) or last_boundary(data)
    )
    assert texts(open_corpus(str(tmp_path))) == [line.encode()]
    assert len(looked_at) >= 1000
    assert sum(looked_at) <= 3 * len(line)  # of the rest of the document, it would be half of 1000 times


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"])
def test_a_document_longer_than_the_bound_is_one_line_and_never_in_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr(documents, "DOCUMENT_BYTES", 1 << 20)
    path, text = tmp_path / name, "x" * (64 << 20)
    if name == "a.parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"text": [text]}), path)
    else:
        data = json.dumps({"text": text}).encode()
        path.write_bytes(gzip.compress(data, 1) if name.endswith("gz") else data)
    del text
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=rf"{name}.* is longer than 1 MiB, the most for a text in JSON"):
            texts(open_corpus(str(path)))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_one_long_row_of_parquet_among_short_ones_is_refused(tmp_path, monkeypatch):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(documents, "DOCUMENT_BYTES", 1000)
    parquet.write_table(pyarrow.table({"text": ["short"] * 999 + ["x" * 1001]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: a row is longer than"):
        texts(open_corpus(str(tmp_path)))


@pytest.mark.parametrize("rows_per_group", [7, 1000])
def test_parquet_is_read_in_order_over_row_groups(tmp_path, rows_per_group):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [f"row {i}" for i in range(100)]
    parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "a.parquet", row_group_size=rows_per_group)
    assert texts(open_corpus(str(tmp_path))) == [row.encode() for row in rows]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["one", "two"], "dictionary", [b"one", b"two"]),
        (["one", "two"], "large_string", [b"one", b"two"]),
        ([b"one", b"\xff"], "binary", [b"one", b"\xff"]),
        (["one", None], "string", "row 2: has no text in the column text"),
        ([1, 2], "int64", "the column text is of type int64, not text"),
        ([[1], [2]], "list", r"the column text is of type list<.*>, not text"),
        ([1, 2], "date32", r"is of type date32\[day\], not text"),
        ([1, 2], "duration", r"is of type duration\[ns\], not text"),
        ([1, 2], "time64", r"is of type time64\[ns\], not text"),
    ],
)
def test_a_column_of_parquet_is_text_or_one_line(tmp_path, values, kind, expected):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    types = {
        "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
        "list": pyarrow.list_(pyarrow.int64()),
        "duration": pyarrow.duration("ns"),
        "time64": pyarrow.time64("ns"),
    }
    column = pyarrow.array(values, types.get(kind) or getattr(pyarrow, kind)())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    if isinstance(expected, list):
        assert texts(open_corpus(str(tmp_path))) == expected
    else:
        with pytest.raises(UserError, match=rf"a\.parquet.*{expected}"):
            texts(open_corpus(str(tmp_path)))


def test_a_row_of_parquet_that_is_not_utf8_is_judged_as_other_text_is(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    column = pyarrow.array([b"ab\xff"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, row 1: not UTF-8 text at byte 2"):
        list(open_corpus(str(tmp_path)).texts())
    assert texts(open_corpus(str(tmp_path), errors="ignore")) == [b"ab"]
