"""Leave paragraphs of the training text out of the validation text: a model has seen them.

Blank lines separate paragraphs; the whitespace around a paragraph does not count.
"""

import itertools
import re
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from gptmini.data.corpus import CHUNK_BYTES, Chunk

# It begins with a plain line break, not a character class, so that `re` searches fast.
_BLANK_LINES = re.compile(rb"(\n[ \t\r]*\n\s*)")


class ParagraphDeduplicator:
    """Remembers the paragraphs of one text, 8 bytes for each, to leave them out of another."""

    def __init__(self) -> None:
        # Python's hash() differs between processes, but these are never saved
        self._hashes = array("q")
        self.dropped_bytes = 0

    def remember(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The chunks unchanged; the hashes of their paragraphs are kept."""
        waiting = b""  # a paragraph that the next chunk may continue
        for chunk in chunks:
            *pieces, waiting = split_paragraphs(waiting, chunk)
            self._hashes.extend(map(hash, filter(None, map(bytes.strip, pieces))))
            yield chunk

    def drop(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The chunks without the paragraphs that `remember` has seen, and without documents left empty."""
        seen = np.unique(np.frombuffer(self._hashes, dtype=np.int64))
        waiting, begun = b"", False  # begun: something of this document was kept
        for chunk in chunks:
            offset = chunk.offset - len(waiting)
            *pieces, waiting = split_paragraphs(waiting, chunk)
            hashes = np.array([hash(piece.strip()) for piece in pieces], dtype=np.int64)
            repeated = zip(_contains(seen, hashes), pieces, strict=True)
            # neighbours that are kept go on as one chunk, so that their ids are those of the whole text
            for is_repeated, run in itertools.groupby(repeated, key=lambda pair: bool(pair[0])):
                text = b"".join(piece for _, piece in run)
                if is_repeated or not (begun or text.strip()):
                    self.dropped_bytes += len(text)
                else:
                    yield chunk._replace(data=text, offset=offset, ends_document=False)
                    begun = True
                offset += len(text)
            if chunk.ends_document:
                if begun:  # an empty chunk ends the document
                    yield chunk._replace(data=b"", offset=offset)
                begun = False


def _contains(seen: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Which hashes are among the sorted `seen`, by binary search; np.isin would scan all of `seen`."""
    index = np.minimum(np.searchsorted(seen, hashes), len(seen) - 1)
    return seen[index] == hashes if len(seen) else np.zeros(len(hashes), dtype=bool)


def split_paragraphs(waiting: bytes, chunk: Chunk) -> list[bytes]:
    """Whole paragraphs, each with the blank lines before it, and last what may go on in the next chunk.

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
