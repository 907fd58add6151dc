"""Files to documents: plain text, gzip, JSON lines, parquet and standard input.

A document is a name, for error messages, and its bytes in blocks, read while it is used. A file's suffix
decides its format: `a.txt` is one document, `a.jsonl` one for each line, `a.json` one for each item of an
array, `a.parquet` one for each row, and all but parquet may end in `.gz`.
"""

import gzip
import itertools
import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any, NamedTuple

from pydantic_core import from_json

from gptmini.data.file_formats import describe_format
from gptmini.errors import MissingPackageError, OutOfMemoryError, UserError, path_error

BLOCK_BYTES = 1 << 18
STANDARD_INPUT = "-"

DOCUMENT_BYTES = 256 << 20  # of a text in JSON or parquet, which is in memory whole, some four times over
_FIELD_ADVICE = "data.text_field, or evaluate's --text-field, names the one to read"
BATCH_BYTES = 16 << 20  # of parquet rows that are decoded at once


class Document(NamedTuple):
    """One text, read while its blocks are asked for."""

    source: str  # where it comes from, for error messages
    blocks: Iterable[bytes]  # should be UTF-8, which nobody has checked yet
    other_format: str | None = None  # what it seems to be, if it is no text


def read_documents(path: Path, text_field: str, named: bool = True) -> Iterator[Document]:
    """The documents in a file; `text_field` names the text in JSON and parquet.

    `named`: the user chose this file, and not a folder or glob in which it lies. Raises UserError, when the
    documents are used, where the file cannot be read or has no such field.
    """
    suffix = format_suffix(path)
    if suffix == ".parquet":
        yield from _parquet_rows(path, text_field)
    elif suffix in (".jsonl", ".ndjson"):
        yield from _json_lines(path, text_field)
    elif suffix == ".json":
        yield from _json_file(path, text_field, named)
    else:
        yield _whole_file(str(path), read_blocks(path))


def read_blocks(path: Path) -> Iterator[bytes]:
    """A file's bytes, those of a .gz unpacked. Raises UserError or OSError where it cannot be read."""
    with _open(path) as file:
        yield from iter(partial(file.read, BLOCK_BYTES), b"")


def _whole_file(source: str, blocks: Iterator[bytes]) -> Document:
    first = next(blocks, b"")
    return Document(source, itertools.chain([first], blocks), describe_format(first[:4096]))


def split_documents(path: Path, separator: bytes) -> Iterator[Document]:
    """The documents in one file that has a separator between them, without the whitespace around each."""
    waiting, count = b"", 0
    for block in read_blocks(path):
        # what follows the last separator waits for the next block, which may end the document
        *whole, waiting = (waiting + block).split(separator)
        for text in whole:
            count += 1
            yield Document(f"{path}, document {count}", [text.strip()])
    yield Document(f"{path}, document {count + 1}", [waiting.strip()])


def read_standard_input() -> Iterator[Document]:
    """What was piped into this process, as one document that can be read more than once."""
    file = _standard_input()

    def blocks() -> Iterator[bytes]:
        with _errors_name("standard input"):
            for position in itertools.count(0, BLOCK_BYTES):
                file.seek(position)  # another reader may have moved it
                if not (block := file.read(BLOCK_BYTES)):
                    return
                yield block

    yield _whole_file("standard input", blocks())


@cache
def _standard_input() -> IO[bytes]:
    """A temporary file with all of standard input, which itself can be read only once."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        what = "closed" if sys.stdin is None or sys.stdin.closed else "the keyboard"
        raise UserError(f"standard input is {what}, but is to be read: pipe a text in, as in `< my.txt`")
    with _errors_name("standard input"):
        file = tempfile.TemporaryFile()  # noqa: SIM115 (open until this process ends)
        shutil.copyfileobj(sys.stdin.buffer, file, BLOCK_BYTES)
    return file


def format_suffix(path: Path) -> str:
    """The suffix that decides the format: the one in front of a .gz.

    >>> format_suffix(Path("a.JSONL.gz"))
    '.jsonl'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else "".join(suffixes[-1:])


@contextmanager
def _errors_name(source: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise path_error(source, error) from None
    except MemoryError:
        raise OutOfMemoryError(f"{source}: too little memory to read it") from None


@contextmanager
def _open(path: Path) -> Iterator[BufferedIOBase]:
    """A file, unpacked if it ends in .gz; UserError or OSError where it cannot be opened or read."""
    with _errors_name(path), gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
        yield file


def _check_length(size: int, location: str) -> None:
    if size > DOCUMENT_BYTES:
        raise UserError(
            f"{location} is longer than {DOCUMENT_BYTES >> 20} MiB, the most for a text in JSON or parquet: "
            "cut it into several, or save it as plain text"
        )


def _json_lines(path: Path, text_field: str) -> Iterator[Document]:
    with _open(path) as file:
        for number in itertools.count(1):
            location = f"{path}:{number}"
            if not (line := file.readline(DOCUMENT_BYTES + 1)):
                return
            _check_length(len(line), location)
            if not line.isspace():
                value = _parse_json(line, location, "a line of JSON")
                yield Document(location, [_json_text(value, location, text_field)])


def _json_file(path: Path, text_field: str, named: bool) -> Iterator[Document]:
    """The texts of an array or an object, or JSON lines under another suffix.

    What is none of these, such as package.json in a folder of source code, is a text like any other; where
    the user `named` the file, it is an error.
    """
    with _open(path) as file:
        data = file.read(DOCUMENT_BYTES + 1)
    _check_length(len(data), str(path))
    first_line, _, more = data.strip().partition(b"\n")
    if more and isinstance(_parse_json_or_none(first_line), dict):
        yield from _json_lines(path, text_field)
        return
    value = _parse_json(data, str(path)) if named else _parse_json_or_none(data)
    if isinstance(value, list) and (named or all(isinstance(item, str | dict) for item in value)):
        for number, item in enumerate(value, 1):
            location = f"{path}, item {number}"
            yield Document(location, [_json_text(item, location, text_field)])
    elif named or (isinstance(value, dict) and text_field in value):
        yield Document(str(path), [_json_text(value, str(path), text_field)])
    else:
        yield _whole_file(str(path), iter([data]))


def _parse_json(data: bytes, location: str, what: str = "JSON") -> Any:
    with suppress(ValueError):  # seven times as fast; what it refuses, json judges
        return from_json(data)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{location}: not {what}: {describe_format(data[:4096]) or error}") from None


def _parse_json_or_none(data: bytes) -> Any:
    with suppress(UserError):
        return _parse_json(data, "")
    return None


def _json_text(value: Any, location: str, text_field: str) -> bytes:
    text = value.get(text_field) if isinstance(value, dict) else value
    if not isinstance(text, str):
        found = "it is no JSON object"
        if isinstance(value, dict):
            names = f"it has {', '.join(value):.200} ({_FIELD_ADVICE})"
            found = f"it is {json.dumps(text):.200}" if text_field in value else names
        raise UserError(f"{location}: has no text in the field {text_field}: {found}")
    return text.encode("utf-8", errors="surrogatepass")  # "\ud800" is JSON, but refused later as no UTF-8


def _parquet_rows(path: Path, text_field: str) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackageError(f"{path}: reading parquet", "pyarrow") from None
    number = 0
    try:
        with _errors_name(path), pyarrow.parquet.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            schema = file.schema_arrow
            if text_field not in schema.names:
                names = ", ".join(schema.names)
                raise UserError(f"{path}: has no column {text_field}: it has {names:.200} ({_FIELD_ADVICE})")
            kind = schema.types[schema.names.index(text_field)]
            try:
                pyarrow.nulls(0, kind).cast("large_binary")
            except (NotImplementedError, ValueError):  # pyarrow: no such cast
                raise UserError(f"{path}: the column {text_field} is of type {kind}, not text") from None
            for group in range(file.num_row_groups):
                # a few rows at a time, as a row group can be larger than memory
                rows = _rows_at_a_time(file.metadata.row_group(group), text_field, path)
                for batch in file.iter_batches(rows, [group], [text_field], use_threads=False):
                    for text in batch.column(0).cast("large_binary"):  # as a string might be no UTF-8
                        number += 1
                        if not text.is_valid:
                            raise UserError(f"{path}, row {number}: has no text in the column {text_field}")
                        _check_length(text.as_buffer().size, f"{path}: a row")
                        yield Document(f"{path}, row {number}", [text.as_py()])
    except pyarrow.ArrowException as error:
        raise path_error(path, error) from None


def _rows_at_a_time(group: Any, text_field: str, path: Path) -> int:
    """How many rows of a row group to decode at once, by their mean size."""
    columns = (group.column(i) for i in range(group.num_columns))
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == text_field)
    mean = size // max(1, group.num_rows)
    _check_length(mean, f"{path}: a row")
    return min(max(1, BATCH_BYTES // max(1, mean)), 32)
