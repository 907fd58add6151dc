"""How much of a text is copied verbatim from another: has a model memorized its training text?

Both functions compare hashes of all substrings of one length. The long text comes in blocks, so memory
depends on the short text only.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from gptmini.data.tokenizers import Tokenizer

BLOCK_TOKENS = 1 << 18
COPIED_BYTES = 50  # a run this long is not a coincidence


class SharedRun(NamedTuple):
    """The longest substring of a text that another text contains."""

    text: str
    start: int  # byte offset in the shorter text


def longest_shared_run(text: bytes, blocks: Iterable[bytes]) -> SharedRun:
    """The longest run of characters of `text` that the concatenated `blocks` contain too.

    >>> longest_shared_run("to be or not to bé".encode(), ["is it not t".encode(), "o bè like".encode()])
    SharedRun(text=' not to b', start=8)
    """
    best, start = 0, 0
    previous = b""  # the end of the blocks so far: a run may cross the border
    for block in blocks:
        window = previous + block
        # Lengthen the best run by 1, 2, 4, ... bytes while the window has one, then by 1 again.
        while best < len(text):
            step = 1
            while (found := _find_shared(text, window, best + step)) is not None:
                best, start, step = best + step, found, 2 * step
            if step == 1:
                break
        previous = window[max(0, len(window) - max(len(text), 1)) :]
    whole_characters = text[start : start + best].decode("utf-8", errors="ignore")
    return SharedRun(whole_characters, start)


def copied_fraction(text: bytes, blocks: Iterable[bytes]) -> float:
    """The fraction of `text` inside runs of at least COPIED_BYTES bytes that `blocks` contain too.

    >>> copied_fraction(b"x" * 60 + b"y" * 60, [b"ab" + b"x" * 30, b"x" * 22])
    0.5
    """
    hashes = _hashes(text, COPIED_BYTES)  # one for each position in the text
    unique, unique_index = np.unique(hashes, return_inverse=True)
    copied = np.zeros(len(unique), dtype=bool)
    previous = b""
    for block in blocks:
        window = previous + block
        copied |= np.isin(unique, np.unique(_hashes(window, COPIED_BYTES)), assume_unique=True)
        previous = window[max(0, len(window) - COPIED_BYTES + 1) :]
    # Each copied substring covers COPIED_BYTES bytes: +1 where one begins, -1 behind its end, then sum up.
    begins = np.flatnonzero(copied[unique_index])
    change = np.zeros(len(text) + 1, dtype=np.int64)
    np.add.at(change, begins, 1)
    np.add.at(change, begins + COPIED_BYTES, -1)
    return float((np.cumsum(change)[:-1] > 0).mean()) if text else 0.0


def text_blocks(tokens: np.ndarray, tokenizer: Tokenizer) -> Iterator[bytes]:
    """The text of a token stream, in blocks of BLOCK_TOKENS tokens."""
    for start in range(0, len(tokens), BLOCK_TOKENS):
        yield tokenizer.decode_bytes(tokens[start : start + BLOCK_TOKENS].tolist())


def _find_shared(text: bytes, other: bytes, length: int) -> int | None:
    """Where a substring of `length` bytes begins in `text` that `other` contains too."""
    matches = np.isin(_hashes(text, length), _hashes(other, length))
    for start in np.flatnonzero(matches):
        if text[start : start + length] in other:  # equal hashes may be a collision
            return int(start)
    return None


def _hashes(text: bytes, length: int) -> np.ndarray:
    """A hash, uint64 (n - length + 1,), of each substring of `length` bytes of a text of n bytes.

    A hash of 2 w bytes combines two hashes of w bytes, so this takes log2(length) passes.
    """
    if len(text) < length:
        return np.empty(0, dtype=np.uint64)
    data = np.frombuffer(text, dtype=np.uint8)
    hashes, width = _mix(data.astype(np.uint64) + np.uint64(1)), 1
    while 2 * width <= length:
        hashes = _mix(hashes[:-width] * np.uint64(3) + hashes[width:])
        width *= 2
    if width < length:  # not a power of two: combine two that overlap
        hashes = _mix(hashes[: len(data) - length + 1] * np.uint64(5) + hashes[length - width :])
    return hashes


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    return x ^ (x >> np.uint64(29))
