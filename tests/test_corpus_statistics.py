import pytest
import tiktoken

from gptmini.config import TokenizerConfig
from gptmini.data.corpus import Corpus
from gptmini.data.documents import Document
from gptmini.data.prepare import prepare_corpus
from gptmini.evaluation.corpus_statistics import describe


def corpus_of(*texts: bytes) -> Corpus:
    return Corpus("texts", (lambda: iter([Document("a", [text]) for text in texts]),))


def test_the_statistics_of_a_corpus(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    corpus = corpus_of(b"same\n\nunlike\n", b" same \n\nother", b"the longest of all\n\nsame")
    data = prepare_corpus(corpus, 0.4, TokenizerConfig(kind="bytes"), 2, quiet=True)
    found = describe(corpus, data)
    assert found["documents"] == 3
    assert found["text_bytes"] == 13 + 13 + 24
    assert found["longest_document_bytes"] == 24
    assert found["repeated_share"] == 8 / 50
    assert found["tokens"] == len(data.train) + len(data.val)
    assert found["bytes_per_token"] == pytest.approx(1, abs=0.05)
    assert found["gpt2_bytes_per_token"] is None


def test_gpt2_is_compared_with_where_its_files_are_at_hand(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing is downloaded for a test
    try:
        gpt2 = tiktoken.get_encoding("gpt2")
    except (OSError, ValueError):
        pytest.skip("GPT-2's files are not at hand")
    text = "Some plain English text, and some more. " * 20
    corpus = corpus_of(text.encode())
    data = prepare_corpus(corpus, 0.1, TokenizerConfig(kind="bytes"), 2, quiet=True)
    assert describe(corpus, data)["gpt2_bytes_per_token"] == len(text) / len(gpt2.encode(text))
