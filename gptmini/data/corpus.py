"""Documents to chunks: files, folders, globs and named corpora as one stream of text.

A corpus is a sequence of documents, and a document is UTF-8 bytes. Neither is ever in memory whole:
`Corpus.chunks` reads a quarter of a megabyte at a time, and can be called again for another pass.
"""

import codecs
import hashlib
import os
import platform
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, NamedTuple

import numpy as np

from gptmini.data.datasets import NAMED, open_named
from gptmini.data.documents import STANDARD_INPUT, Document, read_documents, read_standard_input
from gptmini.data.find_files import find_files
from gptmini.data.python_docs import PYTHON_DOCS
from gptmini.errors import UserError
from gptmini.schema import did_you_mean

CHUNK_BYTES = 1 << 18  # 256 KiB
Errors = Literal["strict", "replace", "ignore"]


class Chunk(NamedTuple):
    """A piece of at most CHUNK_BYTES of one document, with the place it was read from."""

    data: bytes
    source: str  # the file or topic, for error messages
    offset: int  # of data[0] in the document, in bytes
    ends_document: bool
    other_format: str | None = None  # what the document seems to be, if it is no text

    def text(self) -> str:
        """The bytes as text. Raises UserError naming source and offset where they are not UTF-8."""
        if self.other_format:
            raise UserError(f"{self.source}: seems to be {self.other_format}")
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.source}: not UTF-8 text at byte {self.offset + error.start} "
                f"(0x{self.data[error.start]:02x}): save it as UTF-8, use tokenizer.kind = bytes, which "
                "takes any bytes, or set data.errors = replace"
            ) from None


class Contents:
    """What a pass over a corpus finds; `add` takes its chunks one after another."""

    def __init__(self) -> None:
        self._corpus, self._lengths = hashlib.sha256(), array("q")
        self._document, self._length = hashlib.sha256(), 0  # of the document that is being read

    def add(self, chunk: Chunk) -> None:
        """Count the next chunk in."""
        self._document.update(chunk.data)
        self._length += len(chunk.data)
        if chunk.ends_document:  # a digest of digests, so that moving a document's end changes it
            self._corpus.update(self._document.digest())
            self._lengths.append(self._length)
            self._document, self._length = hashlib.sha256(), 0

    @property
    def digest(self) -> str:
        """sha256 over the documents' bytes; file names do not count."""
        return self._corpus.hexdigest()

    @property
    def document_bytes(self) -> np.ndarray:
        """int64 (documents,): the length of each, in order."""
        return np.array(self._lengths, dtype=np.int64)

    @property
    def total_bytes(self) -> int:
        """Bytes in the whole corpus."""
        return sum(self._lengths)


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order; each pass over them opens the files anew."""

    name: str
    sources: tuple[Callable[[], Iterable[Document]], ...]
    errors: Errors = "strict"  # for bytes that are not UTF-8; strict leaves them to the tokenizer
    python_version: str | None = None  # of the interpreter whose documentation is part of it
    key: str = "data.corpus"  # how the user named it, for error messages

    def chunks(self) -> Iterator[Chunk]:
        """Every document from its first byte to its last, in chunks.

        Chunks end where a run of whitespace begins, which is always between two of GPT-2's pre-tokens, so
        encoding them one by one gives the ids of the whole text. (Where CHUNK_BYTES hold no such
        place, they end between two characters.) Documents without text are left out.
        """
        for read in self.sources:
            for source, blocks, other_format in read():
                if self.errors != "strict":
                    if other_format:
                        raise UserError(f"{source}: seems to be {other_format}")
                    blocks = (text.encode() for text in codecs.iterdecode(blocks, "utf-8", self.errors))
                yield from _cut(source, blocks, other_format)

    def texts(self, max_bytes: int | None = None, end: int | None = None) -> Iterator[str]:
        """The text, chunk by chunk, or about `max_bytes` of it in chunks at even distances.

        `end` ends it after that many bytes of the corpus. Raises UserError where the text is not UTF-8.
        """
        end = self.contents.total_bytes if end is None else end
        stride = 1 if max_bytes is None else -(-end // max_bytes)  # every how many-th chunk is taken
        position = 0
        for i, chunk in enumerate(self.chunks()):
            if position >= end:
                return
            start, position = position, position + len(chunk.data)
            if position > end:
                chunk = chunk._replace(data=chunk.data[: character_boundary(chunk.data, end - start)])
            if i % stride == 0:
                yield chunk.text()

    @cached_property
    def contents(self) -> Contents:
        """Digest and document lengths, from one pass at the first use. Raises UserError without text."""
        contents = Contents()
        for chunk in self.chunks():
            contents.add(chunk)
        if not contents.total_bytes:
            raise UserError(f"{self.key} = {self.name}: holds no text")
        return contents


def open_corpus(
    corpus: str | tuple[str, ...],
    text_field: str = "text",
    errors: Errors = "strict",
    key: str = "data.corpus",
) -> Corpus:
    """The corpus that `data.corpus` describes: names, files, folders, globs, or - for standard input.

    Files come in sorted order, and one that is named twice is read once. `text_field` is the field of JSON,
    or the column of parquet, that holds the text. Bytes that are not UTF-8 are replaced by U+FFFD
    (errors = replace), dropped (ignore), or left for the tokenizer to judge (strict). Raises UserError, which
    says that the user wrote it as `key`, where something is missing or cannot be read.
    """
    entries = (corpus,) if isinstance(corpus, str) else corpus
    sources: dict[object, Callable[[], Iterable[Document]]] = {}  # by name or path: nothing is read twice
    for entry in map(os.path.expanduser, entries):
        if entry == STANDARD_INPUT:
            sources[entry] = read_standard_input
        elif entry in NAMED:
            sources[entry] = open_named(entry)
        else:
            files = find_files(entry, key)
            if not files:
                raise UserError(
                    f"{key} = {entry}: no such file or folder, and no corpus of that name"
                    f"{did_you_mean(entry, NAMED)} (named corpora: {', '.join(NAMED)})"
                )
            for path in files:
                read = partial(read_documents, path, text_field, named=os.path.isfile(entry))
                sources[os.path.realpath(path)] = read
    return Corpus(
        name=", ".join(entries),
        key=key,
        sources=tuple(sources.values()),
        errors=errors,
        python_version=platform.python_version() if PYTHON_DOCS in sources else None,
    )


# Where a run of whitespace begins: ASCII whitespace that does not follow Unicode whitespace. GPT-2's pattern
# joins whitespace to what comes after it, never to what comes before, so a cut here splits no pre-token.
# (Whitespace is searched for first, and only then what is before it: ten times faster where there is none.)
_RUN_OF_WHITESPACE = re.compile(
    rb"[\t-\r ](?<![\t-\r ].)(?<!\xc2[\x85\xa0].)(?<!\xe1\x9a\x80.)(?<!\xe2\x80[\x80-\x8a\xa8\xa9\xaf].)"
    rb"(?<!\xe2\x81\x9f.)(?<!\xe3\x80\x80.)",
    re.DOTALL,
)


def _cut(source: str, blocks: Iterable[bytes], other_format: str | None = None) -> Iterator[Chunk]:
    """A document in chunks, without the byte order mark that some editors put in front."""
    waiting, offset = b"", 0  # bytes read but not yet in a chunk, and where they begin
    for block in blocks:
        # a long block piece by piece, as cutting a chunk off copies what follows it
        for start in range(0, len(block), CHUNK_BYTES):
            waiting += block[start : start + CHUNK_BYTES]
            if offset == 0 and waiting.startswith(codecs.BOM_UTF8):
                waiting, offset = waiting[len(codecs.BOM_UTF8) :], len(codecs.BOM_UTF8)
            while len(waiting) > CHUNK_BYTES:
                end = _last_boundary(waiting)
                yield Chunk(waiting[:end], source, offset, False, other_format)
                waiting, offset = waiting[end:], offset + end
    if waiting:
        yield Chunk(waiting, source, offset, True, other_format)


def _last_boundary(data: bytes) -> int:
    """The last place in data[1 : CHUNK_BYTES + 1] where a chunk may end."""
    for start in (max(1, CHUNK_BYTES - 4096), 1):  # the end first, where there nearly always is one
        if last := deque(_RUN_OF_WHITESPACE.finditer(data, start, CHUNK_BYTES + 1), maxlen=1):
            return last[0].start()
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
