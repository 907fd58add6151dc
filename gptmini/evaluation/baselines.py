"""What a language model has to beat: gzip, xz and a character 5-gram model on the same text.

A model that predicts a text compresses it, so bits per byte compare it with any compressor. Each of these
knows the training text before it sees the validation text, as the model does.
"""

import lzma
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from gptmini.data.token_files import TokenData
from gptmini.data.tokenizers import Tokenizer

TEXT_BYTES = 8 << 20  # of each split at most, so that it takes seconds and not minutes
CODE_POINTS = 0x110000


class Baselines(NamedTuple):
    """Bits per byte of the validation text, given the training text."""

    gzip: float
    xz: float
    five_gram: float
    train_bytes: int  # the last ones of the training text
    val_bytes: int  # the first ones of the validation text


def measure_baselines(data: TokenData) -> Baselines:
    """What gzip, xz and a character 5-gram model need for the validation split of a prepared corpus.

    Both texts are read up to TEXT_BYTES on their sides of the border, which takes some 20 seconds; shorter
    ones are read whole.
    """
    train = last_bytes(data.train, data.tokenizer, TEXT_BYTES)
    val = first_bytes(data.val, data.tokenizer, TEXT_BYTES)
    return Baselines(
        gzip=8 * gzip_bytes(train, val) / len(val),
        xz=8 * xz_bytes(train, val) / len(val),
        five_gram=five_gram_bits(_characters(train), _characters(val)) / len(val),
        train_bytes=len(train),
        val_bytes=len(val),
    )


def first_bytes(tokens: np.ndarray, tokenizer: Tokenizer, size: int) -> bytes:
    """The text of a token stream, up to about its first `size` bytes."""
    tokens = tokens[:size]  # hardly a token stands for less than a byte
    ends = np.cumsum(tokenizer.token_byte_lengths[tokens])
    return tokenizer.decode_bytes(tokens[: np.searchsorted(ends, size, side="right")].tolist())


def last_bytes(tokens: np.ndarray, tokenizer: Tokenizer, size: int) -> bytes:
    """The text of a token stream, from about its last `size` bytes on."""
    tokens = tokens[-size:]
    ends = np.cumsum(tokenizer.token_byte_lengths[tokens][::-1])
    count = int(np.searchsorted(ends, size, side="right"))
    return tokenizer.decode_bytes(tokens[len(tokens) - count :].tolist())


def gzip_bytes(train: bytes, val: bytes) -> int:
    """What `val` adds to a gzip file that holds `train`, of which gzip looks back on the last 32 KiB.

    >>> gzip_bytes(b"", b"to be or not to be"), gzip_bytes(b"not to be or", b"to be or not to be")
    (17, 7)
    """
    compressor = zlib.compressobj(9, wbits=-15, zdict=train[-(1 << 15) :])
    return len(compressor.compress(val) + compressor.flush())


def xz_bytes(train: bytes, val: bytes) -> int:
    """What `val` adds to an xz file that holds `train`, all of which xz looks back on."""
    window = {"dict_size": max(4096, len(train) + len(val))}
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, **window}]

    def size(text: bytes) -> int:
        return len(lzma.compress(text, format=lzma.FORMAT_RAW, filters=filters))

    with ThreadPoolExecutor(2) as threads:
        alone, both = threads.map(size, (train, train + val))
    return both - alone


def five_gram_bits(train: np.ndarray, val: np.ndarray) -> float:
    """Bits for the code points `val` by a 5-gram model of the code points `train`, int64 (n,) and (m,).

    The five orders are mixed by Witten and Bell's rule (1991): after a context that was followed by T
    different characters in N places, the shorter context has the weight T / (N + T). Below them all, every
    code point is as likely as another.

    >>> text = np.array([ord(c) for c in "abracadabra"])
    >>> round(five_gram_bits(text, text), 1), round(five_gram_bits(text[:0], text), 1)
    (0.9, 221.0)
    """
    start = np.full(4, CODE_POINTS)
    train, val = np.concatenate([start, train]), np.concatenate([start, val])
    p = np.full(len(val) - 4, 1 / CODE_POINTS)
    train_context, val_context = np.zeros_like(train[4:]), np.zeros_like(val[4:])
    for order in range(1, 6):
        train_gram, val_gram = _append(train_context, train[4:]), _append(val_context, val[4:])
        grams, first, counts = np.unique(train_gram, return_index=True, return_counts=True)
        contexts, followers = np.unique(train_context[first], return_counts=True)
        totals = np.unique(train_context, return_counts=True)[1]
        count = _look_up(grams, counts, val_gram)
        types, total = (_look_up(contexts, values, val_context) for values in (followers, totals))
        p = np.where(total > 0, (count + types * p) / np.maximum(total + types, 1), p)
        if order < 5:
            back = slice(4 - order, -order)  # the characters that many places before each
            train_context, val_context = _append(train_context, train[back]), _append(val_context, val[back])
    return float(-np.log2(p).sum())


def _characters(text: bytes) -> np.ndarray:
    """Code points, int64 (n,); a byte that is not UTF-8 counts as a character of its own."""
    characters = text.decode("utf-8", errors="surrogateescape")
    return np.frombuffer(characters.encode("utf-32-le", errors="surrogatepass"), np.uint32).astype(np.int64)


def _append(hashes: np.ndarray, characters: np.ndarray) -> np.ndarray:
    """Hashes, int64 (n,), of what each hash stands for and the character behind it."""
    mixed = (hashes.astype(np.uint64) + characters.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed ^ (mixed >> np.uint64(29))).astype(np.int64)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key among sorted keys; 0 where it is none of them."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
