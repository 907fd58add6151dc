"""gigatoken in place of tiktoken: the same ids, or it is not used."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptmini.config import DataConfig
from gptmini.data.corpus import Chunk
from gptmini.data.prepare import prepare
from gptmini.data.tokenizers import Tokenizer, corpus_encoder
from gptmini.data.tokenizers.corpus_encoder import CorpusEncoder

TEXT = "It's 1984,\n\n  and  THEY'll say: “Übung” macht   den\tMeister\u2003\x1c x<|endoftext|>y 三人行。\r\n"
BPE = Tokenizer.train([TEXT * 9, "many other words are merged too, other words"], vocab_size=320)


def chunks(*texts, ends_document=True):
    return [Chunk(text.encode(), "text", 0, ends_document) for text in texts]


@pytest.fixture
def encoded(monkeypatch):
    """The texts that gigatoken has encoded, which is trusted from the first one on."""
    gigatoken = pytest.importorskip("gigatoken")
    monkeypatch.setattr(corpus_encoder, "COMPARED_BYTES", 0)
    texts = []

    def from_json(file):
        real = gigatoken.Tokenizer.from_json(file)
        return SimpleNamespace(encode=lambda text: texts.append(text) or real.encode(text))

    monkeypatch.setitem(
        sys.modules, "gigatoken", SimpleNamespace(Tokenizer=SimpleNamespace(from_json=from_json))
    )
    return texts


def test_token_files_are_the_same_bit_for_bit_with_and_without_gigatoken(tmp_path, encoded, monkeypatch):
    documents = [TEXT, "two ", "", TEXT * 20, "many other words", "<|endoftext|>", "the end " * 9]
    for number, text in enumerate(documents):
        (tmp_path / f"{number}.txt").write_text(text, newline="")
    data = DataConfig(corpus=str(tmp_path / "*.txt"), val_fraction=0.3)
    written = []
    for cache in ("with", "without"):
        monkeypatch.setenv("GPTMINI_CACHE_DIR", str(tmp_path / cache))
        prepare(data, BPE, 4, quiet=True)
        files = sorted(path for path in (tmp_path / cache).rglob("*") if path.is_file())
        written.append({path.relative_to(tmp_path / cache): path.read_bytes() for path in files})
        assert len(encoded) >= 2
        monkeypatch.setitem(sys.modules, "gigatoken", None)  # as if it were not installed
    assert written[0] == written[1]


PIECES = st.lists(st.sampled_from([*TEXT, "<|endoftext|>", "words"]) | st.characters(codec="utf-8"))


@settings(deadline=None)
@given(st.lists(PIECES.map("".join), min_size=1), st.booleans())
def test_any_text_has_the_ids_of_tiktoken(texts, ends_document):
    pytest.importorskip("gigatoken")
    fast = corpus_encoder._with_gigatoken(BPE)
    given = chunks(*texts, ends_document=ends_document)
    assert fast.encode_chunks(given).tolist() == BPE.encode_chunks(given).tolist()


def test_one_other_id_in_the_first_megabyte_and_gigatoken_is_not_used(monkeypatch):
    def from_json(file):
        return SimpleNamespace(encode=lambda text: np.zeros(len(text), dtype=np.uint32))

    monkeypatch.setitem(
        sys.modules, "gigatoken", SimpleNamespace(Tokenizer=SimpleNamespace(from_json=from_json))
    )
    encoder, megabyte = CorpusEncoder(BPE), "other words " * 90_000
    for text in (megabyte, "many other words"):
        assert encoder.encode_chunks(chunks(text)).tolist() == BPE.encode_chunks(chunks(text)).tolist()


def test_a_tokenizer_without_merges_needs_no_gigatoken(encoded):
    tokenizer = Tokenizer.train("", kind="bytes")
    assert CorpusEncoder(tokenizer).encode_chunks(chunks("abc")).tolist() == [*b"abc", 256]
    assert not encoded
