"""A shuffle that is computed, not stored: where each of `size` things goes, from a key alone.

An epoch of a large corpus has millions of windows. Shuffling a list of them takes memory, and a resumed run
must shuffle the same list again; here the place of any one window is a few operations on its index.
"""

import hashlib

import numpy as np


def permute(indices: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Where a fixed shuffle of `size` things, chosen by `key`, puts each of `indices`, int64 (n,).

    A Feistel network (Luby & Rackoff, 1988), walked in cycles until the result is below `size`.

    >>> permute(np.arange(10), 10, key=(0, 0)).tolist(), permute(np.arange(10), 10, key=(0, 1)).tolist()
    ([8, 7, 1, 6, 5, 2, 9, 0, 4, 3], [6, 9, 1, 5, 3, 2, 4, 0, 7, 8])
    """
    # The network shuffles the numbers of 2 x half_bits bits: the next power of four.
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    round_keys = [np.uint64(derive_key(*key, i)) for i in range(1, 5)]
    result = indices.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        left, right = result[outside] >> np.uint64(half_bits), result[outside] & mask
        for round_key in round_keys:
            # One half is XORed with a hash of the other. XORing again undoes it, so no two numbers collide,
            # whatever the hash.
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        result[outside] = (left << np.uint64(half_bits)) | right
        # A result of `size` or more is permuted again until it is below: still one place for each index.
        outside = result >= size
    return result.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """A hash of each uint64: splitmix64's finalizer (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def derive_key(*parts: int) -> int:
    """A 64-bit number that depends on all of `parts`, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")
