"""How much of a text stands word for word in another: has a model learned its training text by heart?

Both functions slide over the long text with hashes of fixed-length pieces, so that it may be of any size:
they take it in blocks, and need memory for the short text only.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from gptmini.data.tokenizers import Tokenizer

BLOCK_TOKENS = 1 << 18
COPIED_BYTES = 50  # a run of so many bytes is no coincidence


class SharedRun(NamedTuple):
    """The longest piece of a text that stands in another."""

    text: str
    start: int  # in bytes, in the shorter text

    @property
    def characters(self) -> int:
        """Its length."""
        return len(self.text)


def longest_shared_run(text: bytes, blocks: Iterable[bytes]) -> SharedRun:
    """The longest run of characters of `text` that also stands in the text which `blocks` make together.

    >>> longest_shared_run("to be or not to bé".encode(), ["is it not t".encode(), "o bè like".encode()])
    SharedRun(text=' not to b', start=8)
    """
    best, start = 0, 0
    before = b""
    for block in blocks:
        both = before + block
        while best < len(text):  # is there a longer one that ends in this block?
            step = 1
            while (place := _find_shared(text, both, best + step)) is not None:
                best, start, step = best + step, place, 2 * step
            if step == 1:
                break
        before = both[max(0, len(both) - max(len(text), 1)) :]
    return SharedRun(_whole_characters(text[start : start + best]), start)


def copied_share(text: bytes, blocks: Iterable[bytes]) -> float:
    """The share of `text` that lies in runs of at least COPIED_BYTES bytes which `blocks` hold as well.

    >>> copied_share(b"x" * 60 + b"y" * 60, [b"ab" + b"x" * 30, b"x" * 22])
    0.5
    """
    hashes = _hashes(np.frombuffer(text, dtype=np.uint8), COPIED_BYTES)
    pieces, piece_of = np.unique(hashes, return_inverse=True)
    found = np.zeros(len(pieces), dtype=bool)
    before = b""
    for block in blocks:
        both = before + block
        theirs = np.unique(_hashes(np.frombuffer(both, dtype=np.uint8), COPIED_BYTES))
        found |= np.isin(pieces, theirs, assume_unique=True)
        before = both[max(0, len(both) - COPIED_BYTES + 1) :]
    begins = np.flatnonzero(found[piece_of])
    change = np.zeros(len(text) + 1, dtype=np.int64)  # +1 where a run begins, -1 behind its end
    np.add.at(change, begins, 1)
    np.add.at(change, begins + COPIED_BYTES, -1)
    return float((np.cumsum(change)[:-1] > 0).mean()) if text else 0.0


def text_blocks(tokens: np.ndarray, tokenizer: Tokenizer) -> Iterator[bytes]:
    """The text of a token stream, a block at a time."""
    for start in range(0, len(tokens), BLOCK_TOKENS):
        yield tokenizer.decode_bytes(tokens[start : start + BLOCK_TOKENS].tolist())


def _find_shared(text: bytes, other: bytes, length: int) -> int | None:
    """Where a piece of `length` bytes begins in `text` that `other` holds too."""
    if length > min(len(text), len(other)):
        return None
    ours = _hashes(np.frombuffer(text, dtype=np.uint8), length)
    theirs = _hashes(np.frombuffer(other, dtype=np.uint8), length)
    for place in np.flatnonzero(np.isin(ours, theirs)):
        if text[place : place + length] in other:
            return int(place)
    return None


def _hashes(data: np.ndarray, length: int) -> np.ndarray:
    """A hash, uint64 (n - length + 1,), of each piece of `length` bytes of data, uint8 (n,).

    Pieces of twice the length are made of two, so it takes log2(length) passes.
    """
    if len(data) < length:
        return np.empty(0, dtype=np.uint64)
    hashes, width = _mix(data.astype(np.uint64) + np.uint64(1)), 1
    while 2 * width <= length:
        hashes = _mix(hashes[:-width] * np.uint64(3) + hashes[width:])
        width *= 2
    if width < length:  # two that overlap
        hashes = _mix(hashes[: len(data) - length + 1] * np.uint64(5) + hashes[length - width :])
    return hashes


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    return x ^ (x >> np.uint64(29))


def _whole_characters(data: bytes) -> str:
    return data.decode("utf-8", errors="ignore")
