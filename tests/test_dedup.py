import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptmini.data import dedup
from gptmini.data.corpus import Chunk, Corpus
from gptmini.data.dedup import ParagraphDeduplicator
from gptmini.data.documents import Document


def chunks_of(*texts: bytes, size: int = 5) -> list[Chunk]:
    """Documents in chunks of `size` bytes."""
    return [
        Chunk(text[i : i + size], "a", i, ends_document=i + size >= len(text))
        for text in texts
        for i in range(0, len(text), size)
    ]


def without(training: list[Chunk], validation: list[Chunk]) -> tuple[list[bytes], int]:
    """The validation documents that are left, and the bytes that are not."""
    seen = ParagraphDeduplicator()
    assert list(seen.remember(training)) == training
    documents, data = [], b""
    for chunk in seen.drop(validation):
        data += chunk.data
        if chunk.ends_document:
            documents.append(data)
            data = b""
    assert data == b""
    return documents, seen.dropped_bytes


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_paragraphs_of_the_training_text_are_left_out_of_validation(size):
    training = chunks_of(b"one\n\ntwo\nlines\n\nthree", b"four\r\n\r\nfive\n", size=size)
    validation = chunks_of(b"new\n\n two\nlines \n \n\nthree four", b"five", b"one\n\nlast", size=size)
    documents, dropped = without(training, validation)
    assert documents == [b"new\n \n\nthree four", b"\n\nlast"]
    assert dropped == len(b"\n\n two\nlines ") + len(b"five") + len(b"one")


def test_what_is_left_keeps_its_place():
    seen = ParagraphDeduplicator()
    list(seen.remember(chunks_of(b"two")))
    text = b"one\n\ntwo\n\nthree"
    for chunk in seen.drop(chunks_of(text)):
        assert text[chunk.offset : chunk.offset + len(chunk.data)] == chunk.data


def test_a_paragraph_without_end_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(dedup, "CHUNK_BYTES", 10)
    documents, _ = without(chunks_of(b"x" * 50), chunks_of(b"y" * 95))
    assert documents == [b"y" * 95]


TEXTS = st.lists(st.text("ab\n ", min_size=1, max_size=30).map(str.encode), max_size=4)


@given(TEXTS, TEXTS, st.integers(1, 9))
def test_no_paragraph_is_in_both_texts(training, validation, size):
    def paragraphs(texts):
        stripped = [b"\n".join(line.rstrip(b" ") for line in text.split(b"\n")) for text in texts]
        return {p.strip() for text in stripped for p in text.split(b"\n\n")} - {b""}

    documents, dropped = without(chunks_of(*training, size=size), chunks_of(*validation, size=size))
    assert paragraphs(documents) == paragraphs(validation) - paragraphs(training)
    assert all(document.strip() for document in documents)
    assert sum(map(len, documents)) + dropped == sum(map(len, validation))


def test_corpora_give_chunks_that_fit():
    corpus = Corpus("a", (lambda: iter([Document("a", [b"one\n\n", b"two"])]),))
    assert without(list(corpus.chunks()), list(corpus.chunks())) == ([], 8)
