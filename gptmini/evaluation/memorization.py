"""How much of a text is copied verbatim from another: has a model memorized its training text?

Both functions compare hashes of all substrings of one length. The long text comes in blocks, so memory
depends on the short text only.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from gptmini.data.token_files import TokenStream
from gptmini.data.tokenizers import Tokenizer

BLOCK_TOKENS = 1 << 18
COPIED_BYTES = 50  # a run this long is not a coincidence
BASE = np.uint64(0x9E3779B97F4A7C15)  # of the hashes: any large odd number
INVERSE = np.uint64(pow(int(BASE), -1, 1 << 64))


def longest_shared_run(text: bytes, blocks: Iterable[bytes]) -> str:
    """The longest run of characters of `text` that the concatenated `blocks` contain too.

    >>> longest_shared_run("to be or not to bé".encode(), ["is it not t".encode(), "o bè like".encode()])
    ' not to b'
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
        previous = window[-max(1, len(text)) :]
    return text[start : start + best].decode("utf-8", errors="ignore")  # whole characters


def copied_fraction(text: bytes, blocks: Iterable[bytes]) -> float:
    """The fraction of `text` inside runs of at least COPIED_BYTES bytes that `blocks` contain too.

    >>> copied_fraction(b"x" * 60 + b"y" * 60, [b"ab" + b"x" * 30, b"x" * 22])
    0.5
    """
    if len(text) < COPIED_BYTES:
        return 0.0
    unique, unique_index = np.unique(_hashes(text, COPIED_BYTES), return_inverse=True)
    copied = np.zeros(len(unique), dtype=bool)
    previous = b""
    for block in blocks:
        window = previous + block
        hashes = _hashes(window, COPIED_BYTES)
        found = np.searchsorted(unique[:-1], hashes)  # where each stands among the sorted ones, if it does
        copied[found[unique[found] == hashes]] = True
        previous = window[-COPIED_BYTES:]
    # A copied substring covers COPIED_BYTES bytes: the bytes from n - COPIED_BYTES + 1 starts to all n.
    covered = np.convolve(copied[unique_index], np.ones(COPIED_BYTES)) > 0.5
    return float(covered.mean())


def text_blocks(tokens: TokenStream, tokenizer: Tokenizer) -> Iterator[bytes]:
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

    The polynomial hash of Rabin and Karp (1987), modulo 2^64: the sum of byte[i] * BASE^i over a substring is
    a difference of two sums from the text's start, and divided by BASE^start the same wherever it stands.
    """
    data = np.frombuffer(text, dtype=np.uint8)
    sums = np.zeros(len(data) + 1, dtype=np.uint64)  # of the first 0, 1, ... n bytes
    np.cumsum(data * np.cumprod(np.full(len(data), BASE)), out=sums[1:])
    substrings = sums[length:] - sums[:-length]
    return substrings * np.cumprod(np.full(len(substrings), INVERSE))
