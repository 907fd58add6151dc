"""Where text comes from: files, folders, globs and named corpora, as a stream of chunks.

A corpus is a sequence of documents, and a document is a run of UTF-8 bytes. Neither is ever in memory whole:
`Corpus.chunks` reads a megabyte at a time, as often as it is asked.
"""

import ast
import glob
import hashlib
import inspect
import itertools
import os
import platform
import re
import sys
import sysconfig
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptmini.config import did_you_mean
from gptmini.errors import UserError

CHUNK_BYTES = 1 << 20

# What is read from a folder. A file that is named, or that a glob matches, is read whatever its suffix.
TEXT_SUFFIXES = frozenset(
    {".txt", ".text", ".md", ".markdown", ".rst", ".org", ".tex", ".srt", ".csv", ".tsv"}
    | {".html", ".htm", ".css", ".xml", ".json", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".sql", ".sh"}
    | {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".swift"}
    | {".js", ".jsx", ".ts", ".tsx", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".scala", ".hs", ".ml"}
)


class Chunk(NamedTuple):
    """A piece of at most CHUNK_BYTES of one document, with the place it was read from."""

    data: bytes
    source: str  # the file or topic, for error messages
    offset: int  # of data[0] in the document, in bytes
    ends_document: bool


class Contents(NamedTuple):
    """What one pass over a corpus finds."""

    digest: str  # sha256 over the documents' bytes; file names do not count
    document_bytes: np.ndarray  # int64 (documents,): the length of each, in order

    @property
    def total_bytes(self) -> int:
        """Bytes in the whole corpus."""
        return int(self.document_bytes.sum())


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order."""

    name: str
    sources: tuple[Callable[[], Iterator[Chunk]], ...]
    python_version: str | None = None  # of the interpreter whose documentation is part of it

    def chunks(self) -> Iterator[Chunk]:
        """Every document from its first byte to its last, in chunks.

        Chunks end where a run of whitespace begins, which is always between two of GPT-2's pre-tokens, so
        encoding them one by one gives the ids of the whole text. (Where a megabyte holds no such place,
        they end between two characters.) Documents without text are left out.
        """
        return itertools.chain.from_iterable(read() for read in self.sources)

    @cached_property
    def contents(self) -> Contents:
        """Digest and document lengths, from one pass at the first use. Raises UserError without text."""
        fingerprint = Fingerprint()
        for chunk in self.chunks():
            fingerprint.update(chunk)
        contents = fingerprint.contents()
        if not contents.total_bytes:
            raise UserError(f"data.corpus = {self.name}: holds no text")
        return contents


class Fingerprint:
    """Computes a corpus's Contents while its chunks pass by."""

    def __init__(self) -> None:
        self._document_bytes = array("q")
        self._document = hashlib.sha256()
        self._document_length = 0
        self._corpus = hashlib.sha256()

    def update(self, chunk: Chunk) -> None:
        """Take in the next chunk."""
        self._document.update(chunk.data)
        self._document_length += len(chunk.data)
        if chunk.ends_document:  # a digest of digests, so that moving a document's end changes it
            self._corpus.update(self._document.digest())
            self._document_bytes.append(self._document_length)
            self._document = hashlib.sha256()
            self._document_length = 0

    def contents(self) -> Contents:
        """What has passed by so far."""
        return Contents(self._corpus.hexdigest(), np.array(self._document_bytes, dtype=np.int64))


def open_corpus(corpus: str | tuple[str, ...]) -> Corpus:
    """The corpus that `data.corpus` describes: a name, a text file, a folder, a glob, or several of these.

    Folders are searched recursively for TEXT_SUFFIXES, leaving out hidden files; files come in sorted
    order, each is one document, and a file that is named twice is read once. Raises UserError when
    something is missing, matches nothing or cannot be read.
    """
    entries = (corpus,) if isinstance(corpus, str) else corpus
    sources: dict[object, Callable[[], Iterator[Chunk]]] = {}  # by name or path: nothing is read twice
    for entry in entries:
        if entry == PYTHON_DOCS:
            sources[entry] = _read_python_docs
        elif entry in DOWNLOADS:
            sources.update(_file_sources([find_download(entry)]))
        else:
            sources.update(_file_sources(_find_files(entry)))
    return Corpus(
        name=", ".join(entries),
        sources=tuple(sources.values()),
        python_version=platform.python_version() if PYTHON_DOCS in sources else None,
    )


def cache_folder() -> Path:
    """Where downloads and token files are kept: GPTMINI_CACHE_DIR, or the user's cache folder."""
    if folder := os.environ.get("GPTMINI_CACHE_DIR"):
        return Path(folder)
    import pooch  # takes a moment to import, and most runs do not need it

    return Path(pooch.os_cache("gptmini"))


# ---------------------------------------------------------------------------------------------- files


def _find_files(entry: str) -> list[Path]:
    """The files that one entry of `data.corpus` stands for, in sorted order."""
    path = Path(entry).expanduser()
    if path.is_dir():
        files = [file for file in _files_under(path) if file.suffix.lower() in TEXT_SUFFIXES]
        if not files:
            raise UserError(
                f"data.corpus = {entry}: this folder holds no text file; the suffixes read from a folder are "
                f"{' '.join(sorted(TEXT_SUFFIXES))} (any file can be named by itself or by a glob)"
            )
        return files
    if path.exists():
        return [path]
    if glob.has_magic(entry):
        files = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        files = [match for match in files if match.is_file()]
        if not files:
            raise UserError(f"data.corpus = {entry}: no file matches this pattern")
        return files
    names = [PYTHON_DOCS, *DOWNLOADS]
    raise UserError(
        f"data.corpus = {entry}: no such file or folder, and no corpus of that name"
        f"{did_you_mean(entry, names)} (named corpora: {', '.join(names)})"
    )


def _files_under(folder: Path, skipped: frozenset[str] = frozenset()) -> list[Path]:
    """Every file below a folder, sorted, without hidden ones and without folders of a skipped name."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}")

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skipped]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(files)


def _file_sources(files: Iterable[Path]) -> dict[object, Callable[[], Iterator[Chunk]]]:
    return {path.resolve(): partial(_read_file, path) for path in files}


def _read_file(path: Path) -> Iterator[Chunk]:
    return _cut(str(path), _read_blocks(path))


def _read_blocks(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            while block := file.read(CHUNK_BYTES):
                yield block
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


# ---------------------------------------------------------------------------------------------- chunks

# Where a run of whitespace begins: whitespace in ASCII that follows no whitespace in Unicode's sense. GPT-2's
# pattern takes whitespace into a token only together with what follows it, never with what stands before it.
_RUN_OF_WHITESPACE = re.compile(
    rb"(?<![\t-\r ])(?<!\xc2[\x85\xa0])(?<!\xe1\x9a\x80)(?<!\xe2\x80[\x80-\x8a\xa8\xa9\xaf])"
    rb"(?<!\xe2\x81\x9f)(?<!\xe3\x80\x80)[\t-\r ]"
)


def _cut(source: str, blocks: Iterable[bytes]) -> Iterator[Chunk]:
    """One document's bytes as chunks."""
    waiting, offset = b"", 0
    for block in blocks:
        waiting += block
        while len(waiting) > CHUNK_BYTES:
            end = _last_boundary(waiting)
            yield Chunk(waiting[:end], source, offset, ends_document=False)
            waiting, offset = waiting[end:], offset + end
    if waiting:
        yield Chunk(waiting, source, offset, ends_document=True)


def _last_boundary(data: bytes) -> int:
    """The last place in data[1 : CHUNK_BYTES + 1] where a chunk may end."""
    for start in (CHUNK_BYTES - 4096, 1):  # nearly always it is close to the end
        matches = list(_RUN_OF_WHITESPACE.finditer(data, start, CHUNK_BYTES + 1))
        if matches:
            return matches[-1].start()
    return character_boundary(data, CHUNK_BYTES)


def character_boundary(data: bytes, position: int) -> int:
    """The last place at or before `position` where a UTF-8 character begins.

    >>> character_boundary("né".encode(), 2)
    1
    """
    for boundary in range(position, max(position - 4, 0), -1):
        if boundary == len(data) or data[boundary] & 0b1100_0000 != 0b1000_0000:
            return boundary
    return position  # four continuation bytes in a row: not UTF-8, so there is nothing to keep whole


# ---------------------------------------------------------------------------------------------- python-docs

PYTHON_DOCS = "python-docs"

# Folders of the standard library without documentation of their own.
_SKIPPED = frozenset({"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "pydoc_data"})
_SKIPPED |= {"site-packages", "dist-packages", "__pycache__"}


def _read_python_docs() -> Iterator[Chunk]:
    for source, text in python_docs():
        yield from _cut(source, [text.encode()])


@cache
def python_docs() -> tuple[tuple[str, str], ...]:
    """(source, text) of each help topic and standard module of the running interpreter.

    Paragraphs that stand in several places are kept once. The order is that of the texts' digests: fixed,
    but as good as shuffled, so that the end of the corpus is a fair sample of the whole. Raises UserError
    where Python was installed without its documentation.
    """
    seen: set[str] = set()
    documents = []
    for source, text in itertools.chain(_help_topics(), _docstrings()):
        paragraphs = []
        for paragraph in text.strip("\n").split("\n\n"):
            key = " ".join(paragraph.split())
            if key and key not in seen:
                seen.add(key)
                paragraphs.append(paragraph.rstrip())
        if paragraphs:
            documents.append((source, "\n\n".join(paragraphs) + "\n"))
    if not documents:
        raise UserError(
            f"data.corpus = {PYTHON_DOCS}: Python {platform.python_version()} at {sys.prefix} was installed "
            "without help topics and library sources; give the path of a text of your own"
        )
    documents.sort(key=lambda document: hashlib.sha256(document[1].encode()).digest())
    return tuple(documents)


def _help_topics() -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it apart
        return
    for name in sorted(topics):
        yield f"help('{name}')", topics[name]


def _docstrings() -> Iterator[tuple[str, str]]:
    """The docstrings of each module of the standard library, read from its source and not by importing it."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in _files_under(library, _SKIPPED):
        if path.suffix == ".py":
            try:
                tree = ast.parse(path.read_bytes())
            except (OSError, SyntaxError, ValueError):  # a template, or a file for another version
                continue
            text = "\n\n".join(_docstrings_under(tree))
            yield path.relative_to(library).as_posix(), text.encode(errors="replace").decode()


def _docstrings_under(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[str]:
    if docstring := ast.get_docstring(node, clean=False):
        yield inspect.cleandoc(docstring)
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings_under(child)


# ---------------------------------------------------------------------------------------------- downloads


@dataclass(frozen=True)
class Download:
    """A corpus to be fetched once and checked by its digest."""

    file_name: str
    url: str
    sha256: str
    size_bytes: int
    other_names: tuple[str, ...] = ()  # under which a copy may lie in the cache folder already


DOWNLOADS = {
    "tiny-shakespeare": Download(
        file_name="tiny-shakespeare.txt",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        size_bytes=1_115_394,
        other_names=("input.txt", "tinyshakespeare.txt"),
    ),
}


def find_download(name: str) -> Path:
    """The file of a named corpus, in the cache folder or fetched into it.

    Raises UserError with what to do when it is not there and cannot be fetched.
    """
    download = DOWNLOADS[name]
    folder = cache_folder()
    for file_name in (download.file_name, *download.other_names):
        if _has_digest(folder / file_name, download):
            return folder / file_name
    import pooch

    try:
        fetched = pooch.retrieve(
            download.url,
            known_hash=f"sha256:{download.sha256}",
            fname=download.file_name,
            path=folder,
            progressbar=sys.stderr.isatty(),
        )
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError is a wrong digest
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"data.corpus = {name}: cannot be downloaded ({type(error).__name__}: {reason}); without a "
            f"network put {download.url} ({download.size_bytes:,} bytes, sha256 {download.sha256}) at "
            f"{folder / download.file_name}, or use {PYTHON_DOCS} or the path of a text of your own"
        ) from None
    return Path(fetched)


def _has_digest(path: Path, download: Download) -> bool:
    if not path.is_file() or path.stat().st_size != download.size_bytes:
        return False
    digest = hashlib.sha256()
    for block in _read_blocks(path):
        digest.update(block)
    return digest.hexdigest() == download.sha256
