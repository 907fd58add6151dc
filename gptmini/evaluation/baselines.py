"""Baselines for a language model: gzip, xz and a character 5-gram model on the same text.

A model that predicts a text also compresses it, so bits per byte compare it with any compressor. Each
baseline is given the training text before it sees the validation text, as the model was.
"""

import lzma
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from gptmini.data.token_files import TokenData, TokenStream
from gptmini.data.tokenizers import Tokenizer

TEXT_BYTES = 8 << 20  # of each split at most: seconds instead of minutes
CODE_POINTS = 0x110000  # of Unicode


class Baselines(NamedTuple):
    """Bits per byte of the validation text, given the training text."""

    gzip: float
    xz: float
    five_gram: float
    train_bytes: int  # used, from the end of the training text
    val_bytes: int  # used, from the beginning of the validation text

    @property
    def bits_per_byte(self) -> dict[str, float]:
        """Each baseline's bits per byte under the name that is shown."""
        return {"gzip": self.gzip, "xz": self.xz, "5-gram": self.five_gram}


def measure_baselines(data: TokenData) -> Baselines:
    """The baselines on at most TEXT_BYTES on each side of the border between the splits: some 20 seconds."""
    train = last_bytes(data.train, data.tokenizer, TEXT_BYTES)
    val = first_bytes(data.val, data.tokenizer, TEXT_BYTES)
    return Baselines(
        gzip=8 * gzip_bytes(train, val) / len(val),
        xz=8 * xz_bytes(train, val) / len(val),
        five_gram=five_gram_bits(_characters(train), _characters(val)) / len(val),
        train_bytes=len(train),
        val_bytes=len(val),
    )


def first_bytes(tokens: TokenStream, tokenizer: Tokenizer, size: int) -> bytes:
    """The text of a token stream, cut after its first `size` bytes or a little earlier."""
    tokens = tokens[:size]  # nearly every token is a byte or more
    ends = np.cumsum(tokenizer.token_byte_lengths[tokens])
    return tokenizer.decode_bytes(tokens[: np.searchsorted(ends, size, side="right")].tolist())


def last_bytes(tokens: TokenStream, tokenizer: Tokenizer, size: int) -> bytes:
    """The last `size` bytes of a token stream's text, or a little less."""
    tokens = tokens[-size:]
    ends = np.cumsum(tokenizer.token_byte_lengths[tokens][::-1])
    dropped = len(tokens) - np.searchsorted(ends, size, side="right")
    return tokenizer.decode_bytes(tokens[dropped:].tolist())


def gzip_bytes(train: bytes, val: bytes) -> int:
    """Bytes that `val` adds to a gzip file of `train`; gzip's window is the last 32 KiB.

    >>> gzip_bytes(b"", b"to be or not to be"), gzip_bytes(b"not to be or", b"to be or not to be")
    (17, 7)
    """
    compressor = zlib.compressobj(9, wbits=-15, zdict=train[-(1 << 15) :])
    return len(compressor.compress(val) + compressor.flush())


def xz_bytes(train: bytes, val: bytes) -> int:
    """Bytes that `val` adds to an xz file of `train`, with a window over all of it."""
    window = {"dict_size": max(4096, len(train) + len(val))}
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, **window}]

    def size(text: bytes) -> int:
        return len(lzma.compress(text, format=lzma.FORMAT_RAW, filters=filters))

    with ThreadPoolExecutor(2) as threads:
        alone, both = threads.map(size, (train, train + val))
    return both - alone


def five_gram_bits(train: np.ndarray, val: np.ndarray) -> float:
    """Bits that a 5-gram model of the code points `train`, int64 (n,), needs for `val`, int64 (m,).

    Interpolated Witten-Bell smoothing (1991): a context seen N times with T distinct followers gives the
    next shorter context the weight T / (N + T). The shortest of all is uniform over code points.

    >>> text = np.array([ord(c) for c in "abracadabra"])
    >>> round(five_gram_bits(text, text), 1), round(five_gram_bits(text[:0], text), 1)
    (0.9, 221.0)
    """
    start = np.full(4, CODE_POINTS)  # padding: the first characters have a context too
    train, val = np.concatenate([start, train]), np.concatenate([start, val])
    p = np.full(len(val) - 4, 1 / CODE_POINTS)  # (m,) probability of each character; order 0 is uniform
    train_context, val_context = np.zeros_like(train[4:]), np.zeros_like(val[4:])  # hashes; order 1 has none
    for order in range(1, 6):
        # Count the n-grams (context + character) of the training text, and for each context how often it
        # occurs (N) and how many distinct characters follow it (T).
        train_gram, val_gram = _append(train_context, train[4:]), _append(val_context, val[4:])
        grams, first, counts = np.unique(train_gram, return_index=True, return_counts=True)
        contexts, distinct = np.unique(train_context[first], return_counts=True)
        totals = np.unique(train_context, return_counts=True)[1]
        # Look these up for each character of the validation text, and interpolate with the shorter context.
        count = _look_up(grams, counts, val_gram)
        T, N = (_look_up(contexts, values, val_context) for values in (distinct, totals))
        p = np.where(N > 0, (count + T * p) / np.maximum(N + T, 1), p)
        if order < 5:  # lengthen the contexts by the character that is `order` places back
            back = slice(4 - order, -order)
            train_context, val_context = _append(train_context, train[back]), _append(val_context, val[back])
    return float(-np.log2(p).sum())


def _characters(text: bytes) -> np.ndarray:
    """Code points, int64 (n,); each byte that is not UTF-8 becomes a surrogate of its own."""
    characters = text.decode("utf-8", errors="surrogateescape")
    return np.frombuffer(characters.encode("utf-32-le", errors="surrogatepass"), np.uint32).astype(np.int64)


def _append(hashes: np.ndarray, characters: np.ndarray) -> np.ndarray:
    """Hashes, int64 (n,), of each hashed context with one more character."""
    mixed = (hashes.astype(np.uint64) + characters.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed ^ (mixed >> np.uint64(29))).astype(np.int64)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key among the sorted `keys`; 0 for a key that is absent."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64)
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[index] == wanted, values[index], 0)
