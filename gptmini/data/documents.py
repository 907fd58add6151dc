"""Files to documents: plain text, gzip, JSON lines, parquet and standard input.

A document is a name, for error messages, and its bytes in blocks, read while it is used. A file's suffix
decides its format: `a.txt` is one document, `a.jsonl` one for each line, `a.parquet` one for each row, and
all but parquet may end in `.gz`.
"""

import glob
import gzip
import itertools
import json
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from io import BufferedIOBase
from pathlib import Path
from typing import IO, NamedTuple

from gptmini.errors import MissingPackageError, UserError

BLOCK_BYTES = 1 << 18
STANDARD_INPUT = "-"

# What is read from a folder. A file that is named, or that a glob matches, is read whatever its suffix.
TEXT_SUFFIXES = frozenset(
    {".txt", ".text", ".md", ".markdown", ".rst", ".org", ".tex", ".srt", ".csv", ".tsv"}
    | {".html", ".htm", ".css", ".xml", ".json", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".sql", ".sh"}
    | {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".swift"}
    | {".js", ".jsx", ".ts", ".tsx", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".scala", ".hs", ".ml"}
    | {".jsonl", ".ndjson", ".parquet"}
)


class Document(NamedTuple):
    """One text, read while its blocks are asked for."""

    source: str  # where it comes from, for error messages
    blocks: Iterable[bytes]  # should be UTF-8, which nobody has checked yet


def find_files(entry: str, key: str) -> list[Path]:
    """The files that a path or glob stands for, sorted; empty if it is no glob and no such path exists.

    Folders are searched recursively for TEXT_SUFFIXES (with or without .gz), leaving out what is hidden.
    Raises UserError for a folder without text, a glob without match, and what is no file.
    """
    path = Path(entry).expanduser()
    if path.is_dir():
        files = [file for file in files_under(path) if _suffix(file) in TEXT_SUFFIXES]
        if not files:
            raise UserError(
                f"{key} = {entry}: this folder holds no text file; the suffixes read from a folder are "
                f"{' '.join(sorted(TEXT_SUFFIXES))} (any file can be named by itself or by a glob)"
            )
        return files
    if path.is_file():
        return [path]
    if path.exists():
        raise UserError(
            f"{key} = {entry}: a pipe or device, which cannot be read twice; pipe it into standard input and "
            f"give {STANDARD_INPUT} instead"
        )
    if glob.has_magic(entry):
        matches = sorted(glob.glob(str(path), recursive=True))
        files = [Path(match) for match in matches if os.path.isfile(match)]
        if not files:
            raise UserError(f"{key} = {entry}: no file matches this pattern")
        return files
    return []


def files_under(folder: Path, skipped: frozenset[str] = frozenset()) -> list[Path]:
    """Every file below a folder, sorted, without hidden ones and without folders of a skipped name."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}")

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skipped]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(file for file in files if file.is_file() or not file.exists())  # no pipes or devices


def read_documents(path: Path, text_field: str) -> Iterator[Document]:
    """The documents in a file; `text_field` names the text in JSON lines and parquet.

    Raises UserError, when the documents are used, where the file cannot be read or has no such field.
    """
    suffix = _suffix(path)
    if suffix == ".parquet":
        yield from _parquet_rows(path, text_field)
    elif suffix in (".jsonl", ".ndjson"):
        yield from _json_lines(path, text_field)
    else:
        yield Document(str(path), read_blocks(path))


def read_blocks(path: Path) -> Iterator[bytes]:
    """A file's bytes, those of a .gz unpacked. Raises UserError where it cannot be read."""
    with _open(path) as file:
        yield from iter(partial(file.read, BLOCK_BYTES), b"")


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
        for position in itertools.count(0, BLOCK_BYTES):
            file.seek(position)  # another reader may have moved it
            if not (block := file.read(BLOCK_BYTES)):
                return
            yield block

    yield Document("standard input", blocks())


@cache
def _standard_input() -> IO[bytes]:
    """A temporary file with all of standard input, which itself can be read only once."""
    if sys.stdin.isatty():
        raise UserError("data.corpus = -: standard input is the keyboard; pipe a text in, as in `< my.txt`")
    file = tempfile.TemporaryFile()  # noqa: SIM115 (open until this process ends)
    shutil.copyfileobj(sys.stdin.buffer, file, BLOCK_BYTES)
    return file


def _suffix(path: Path) -> str:
    """The suffix that decides the format: the one in front of a .gz.

    >>> _suffix(Path("a.JSONL.gz"))
    '.jsonl'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else "".join(suffixes[-1:])


@contextmanager
def _open(path: Path) -> Iterator[BufferedIOBase]:
    """A file, unpacked if it ends in .gz; UserError where it cannot be opened or read."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"{path}: cannot be read: {' '.join(reason.split())}")


def _json_lines(path: Path, text_field: str) -> Iterator[Document]:
    with _open(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield Document(f"{path}:{number}", [_json_text(line, f"{path}:{number}", text_field)])


def _json_text(line: bytes, location: str, text_field: str) -> bytes:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{location}: not a line of JSON: {error}") from None
    text = value.get(text_field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        found = "it is no JSON object"
        if isinstance(value, dict):
            found = f"it is {json.dumps(text)}" if text_field in value else f"it has {', '.join(value)}"
        raise UserError(f"{location}: has no text in the field {text_field}: {found:.200}")
    return text.encode("utf-8", errors="surrogatepass")  # "\ud800" is JSON, but refused later as no UTF-8


def _parquet_rows(path: Path, text_field: str) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackageError(f"{path}: reading parquet", "pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            if text_field not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise UserError(f"{path}: has no column {text_field}: it has {names:.200}")
            # a few rows at a time, as a row group can be larger than memory
            batches = file.iter_batches(batch_size=256, columns=[text_field], use_threads=False)
            rows = (text for batch in batches for text in batch.column(0).to_pylist())
            for number, text in enumerate(rows, 1):
                if not isinstance(text, str):
                    raise UserError(f"{path}, row {number}: has no text in the column {text_field}")
                yield Document(f"{path}, row {number}", [text.encode()])
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from None
