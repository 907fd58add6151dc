import gzip
import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from gptmini.config import TokenizerConfig
from gptmini.data.corpus import Corpus
from gptmini.data.documents import Document
from gptmini.data.prepare import prepare_corpus
from gptmini.evaluation.baselines import (
    first_bytes,
    five_gram_bits,
    gzip_bytes,
    last_bytes,
    measure_baselines,
    xz_bytes,
)

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "and", "naïve", "狐狸"]


def text(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def code_points(characters: str) -> np.ndarray:
    return np.array([ord(c) for c in characters])


def plain_five_gram_bits(train: str, val: str) -> float:
    """Witten and Bell's rule as the books write it, one character at a time."""
    followers: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    padded = ["start"] * 4 + list(train)
    for i in range(4, len(padded)):
        for order in range(5):
            followers[tuple(padded[i - order : i])][padded[i]] += 1

    def probability(context: tuple[str, ...], character: str) -> float:
        shorter = probability(context[1:], character) if context else 1 / 0x110000
        seen = followers.get(context)
        if not seen:
            return shorter
        return (seen[character] + len(seen) * shorter) / (sum(seen.values()) + len(seen))

    padded = ["start"] * 4 + list(val)
    return -sum(math.log2(probability(tuple(padded[i - 4 : i]), padded[i])) for i in range(4, len(padded)))


@pytest.mark.parametrize("train", [text(1, 300), "x", ""])
def test_the_five_gram_model_is_witten_and_bells(train):
    val = text(2, 100) + " unknown: ß"
    bits = five_gram_bits(code_points(train), code_points(val))
    assert bits == pytest.approx(plain_five_gram_bits(train, val), rel=1e-9)


def test_gzip_and_xz_know_the_training_text():
    train, val = text(1, 2000).encode(), text(2, 500).encode()
    grown = len(gzip.compress(train + val)) - len(gzip.compress(train))
    assert gzip_bytes(train, val) == pytest.approx(grown, rel=0.05)
    assert xz_bytes(train, train) < xz_bytes(b"", train) / 30
    assert xz_bytes(train, val) < 0.9 * xz_bytes(b"", val)


def test_every_tokenizer_gives_the_baselines_the_same_bytes():
    corpus = Corpus("text", (lambda: iter([Document("a", [text(3, 3000).encode()])]),))
    found = set()
    for kind in ("bytes", "bpe", "chars"):
        data = prepare_corpus(corpus, 0.1, TokenizerConfig(kind=kind), 4, quiet=True)
        found.add(measure_baselines(data))
    (baselines,) = found
    assert (baselines.train_bytes, baselines.val_bytes) == (data.meta.train_bytes, data.meta.val_bytes)
    assert 0.5 < baselines.five_gram < 0.9 < baselines.gzip < 1.5
    assert baselines.xz < baselines.gzip


def test_bytes_that_are_not_text_have_baselines_too():
    noise = bytes(random.Random(4).choices(range(256), k=5000))
    corpus = Corpus("noise", (lambda: iter([Document("a", [noise])]),))
    data = prepare_corpus(corpus, 0.1, TokenizerConfig(kind="bytes"), 4, quiet=True)
    found = measure_baselines(data)
    assert 8 <= found.gzip < 9
    assert 8 <= found.five_gram < 12


def test_a_long_text_is_cut_on_both_sides_of_the_border_between_the_splits():
    corpus = Corpus("text", (lambda: iter([Document("a", [b"0123456789" * 10])]),))
    data = prepare_corpus(corpus, 0.5, TokenizerConfig(kind="bytes"), 4, quiet=True)
    assert last_bytes(data.train, data.tokenizer, 4) == b"6789"
    assert first_bytes(data.val, data.tokenizer, 4) == b"0123"
    assert first_bytes(data.val, data.tokenizer, 1000) == b"0123456789" * 5
