"""Paragraphs that stand in the training and in the validation text: a model has seen them, so they go.

Blank lines are between paragraphs; the whitespace around a paragraph does not count.
"""

import itertools
import re
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from gptmini.data.corpus import CHUNK_BYTES, Chunk

# Without a class of characters in front, so that the search for a line break can be a fast one.
_BLANK_LINES = re.compile(rb"(\n[ \t\r]*\n\s*)")


class ParagraphDeduplicator:
    """Remembers the paragraphs of one text, 8 bytes for each, to leave them out of another."""

    def __init__(self) -> None:
        self._hashes = array("q")  # Python's own: they differ from process to process, and this is one
        self.dropped_bytes = 0

    def remember(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The chunks as they are; their paragraphs are noted while they pass by."""
        waiting = b""
        for chunk in chunks:
            *pieces, waiting = split_paragraphs(waiting, chunk)
            self._hashes.extend(map(hash, filter(None, map(bytes.strip, pieces))))
            yield chunk

    def drop(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The chunks without the paragraphs that `remember` has noted, and without documents left empty."""
        noted = np.unique(np.frombuffer(self._hashes, dtype=np.int64))
        waiting, begun = b"", False
        for chunk in chunks:
            offset = chunk.offset - len(waiting)
            *pieces, waiting = split_paragraphs(waiting, chunk)
            hashes = np.array([hash(piece.strip()) for piece in pieces], dtype=np.int64)
            for known, run in itertools.groupby(
                zip(_are_among(noted, hashes), pieces, strict=True), key=lambda pair: bool(pair[0])
            ):
                text = b"".join(piece for _, piece in run)
                if known or not (begun or text.strip()):
                    self.dropped_bytes += len(text)
                else:
                    yield chunk._replace(data=text, offset=offset, ends_document=False)
                    begun = True
                offset += len(text)
            if chunk.ends_document:
                if begun:
                    yield chunk._replace(data=b"", offset=offset)
                begun = False


def _are_among(known: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Which hashes stand among sorted known ones; np.isin would go through all of the known each time."""
    place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return known[place] == hashes if len(known) else np.zeros(len(hashes), dtype=bool)


def split_paragraphs(waiting: bytes, chunk: Chunk) -> list[bytes]:
    """Whole paragraphs, each with the blank lines before it, and then what has to wait for the next chunk.

    >>> split_paragraphs(b"a", Chunk(b"b\\n\\nc\\n", "", 0, ends_document=False))
    [b'ab', b'\\n\\nc\\n']
    >>> split_paragraphs(b"a", Chunk(b"b\\n\\nc\\n", "", 0, ends_document=True))
    [b'ab', b'\\n\\nc\\n', b'']
    """
    first, *rest = _BLANK_LINES.split(waiting + chunk.data)
    pieces = [first, *(blank + text for blank, text in zip(rest[::2], rest[1::2], strict=True))]
    if chunk.ends_document or len(pieces[-1]) > CHUNK_BYTES:  # bounded, even where there are no blank lines
        pieces.append(b"")
    return pieces
