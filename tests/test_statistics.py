import pytest
import tiktoken

from gptmini.config import TokenizerConfig
from gptmini.data.corpus import Corpus
from gptmini.data.documents import Document
from gptmini.data.prepare import prepare_corpus
from gptmini.data.statistics import describe
from gptmini.data.tokenizers import sample


def corpus_of(*texts: bytes) -> Corpus:
    return Corpus("texts", (lambda: iter([Document("a", [text]) for text in texts]),))


def test_the_figures_of_a_corpus(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    corpus = corpus_of(b"same\n\nunlike\n", b" same \n\nother", b"the longest of all\n\nsame")
    data = prepare_corpus(corpus, 0.4, TokenizerConfig(kind="bytes"), 2, quiet=True)
    figures = describe(corpus, data)
    assert figures.documents == 3
    assert figures.text_bytes == 13 + 13 + 24
    assert figures.longest_document_bytes == 24
    assert figures.repeated_share == 8 / 50
    assert figures.tokens == len(data.train) + len(data.val)
    assert figures.bytes_per_token == pytest.approx(1, abs=0.05)
    assert figures.gpt2_bytes_per_token is None


def test_gpt2_is_compared_with_where_its_files_are_at_hand(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing is downloaded for a test
    try:
        gpt2 = tiktoken.get_encoding("gpt2")
    except (OSError, ValueError):
        pytest.skip("GPT-2's files are not at hand")
    text = "Some plain English text, and some more. " * 20
    corpus = corpus_of(text.encode())
    data = prepare_corpus(corpus, 0.1, TokenizerConfig(kind="bytes"), 2, quiet=True)
    assert describe(corpus, data).gpt2_bytes_per_token == len(text) / len(gpt2.encode(text))


def test_a_sample_is_bounded_and_spread_over_the_text():
    texts = [f"text number {i:03}".encode() for i in range(100)]
    assert list(sample(corpus_of(*texts), 10_000)) == [text.decode() for text in texts]
    spread = list(sample(corpus_of(*texts), 150))
    assert spread == ["text number 000", "text number 010", "text number 020"] + [
        f"text number {i:03}" for i in range(30, 100, 10)
    ]
    assert list(sample(corpus_of(*texts), 10_000, end=20)) == ["text number 000", "text "]
