import itertools

import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiktoken_ext.openai_public import r50k_pat_str

from gptmini.data import corpus as corpus_module
from gptmini.data.corpus import Chunk, Corpus, open_corpus
from gptmini.data.documents import Document


def in_memory(*texts: bytes, **fields) -> Corpus:
    return Corpus("texts", (lambda: iter([Document("a", [text]) for text in texts]),), **fields)


ENCODING = tiktoken.Encoding(
    "words",
    pat_str=r50k_pat_str,
    mergeable_ranks={bytes([b]): b for b in range(256)}
    | {
        token: 256 + i for i, token in enumerate([b"  ", b" a", b"ab", b"\n\n", b" 1", b"\xc2\xa0", b"\xa0 "])
    },
    special_tokens={},
)


@settings(max_examples=300)
@given(st.text(alphabet="ab1'. \t\n\r\x1c\x85\xa0\u2028\u3000é你🙂", min_size=40))
@example("ab  \xa0 a\u3000 b\n\n 1 ab" * 5)
def test_the_ids_of_chunks_are_those_of_the_whole_text(text):
    data = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "CHUNK_BYTES", 16)
        chunks = list(corpus_module._cut("a", [data]))
        cuts = [chunk.offset for chunk in chunks[1:]]
    assert b"".join(chunk.data for chunk in chunks) == data
    if all(data[cut] in b" \t\n\r" and not data[:cut].decode()[-1].isspace() for cut in cuts):
        ids = [i for chunk in chunks for i in ENCODING.encode_ordinary(chunk.data.decode())]
        assert ids == ENCODING.encode_ordinary(text)


def test_a_long_text_is_read_in_chunks_that_end_before_whitespace(tmp_path):
    text = "".join(f"word{i}  and\n\tmore\u3000 " for i in range(100_000)).encode()
    (tmp_path / "a.txt").write_bytes(text)
    chunks = list(open_corpus(str(tmp_path / "a.txt")).chunks())
    assert b"".join(chunk.data for chunk in chunks) == text
    assert [chunk.ends_document for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    for before, after in itertools.pairwise(chunks):
        assert len(before.data) <= corpus_module.CHUNK_BYTES
        assert not before.data.decode()[-1].isspace()
        assert after.data[:1].isspace()
    whole = ENCODING.encode_ordinary(text.decode())
    assert [i for chunk in chunks for i in ENCODING.encode_ordinary(chunk.data.decode())] == whole


def test_a_text_without_whitespace_is_cut_between_characters():
    text = "é你🙂" * 400_000
    chunks = list(corpus_module._cut("a", [text.encode()]))
    assert len(chunks) == -(-len(text.encode()) // corpus_module.CHUNK_BYTES)
    assert "".join(chunk.data.decode() for chunk in chunks) == text


def test_bytes_that_are_no_text_are_cut_too():
    data = b"\x80" * 1_000_000
    assert b"".join(chunk.data for chunk in corpus_module._cut("a", [data])) == data


@given(
    st.lists(st.binary(max_size=9)),
    st.sampled_from(["replace", "ignore"]),
)
@example([b"\xe4\xbd", b"\xa0\xff", b"\xe4"], "replace")
@example([b"\xef", b"\xbb", b"\xbf\xff", b"\xef\xbb\xbf"], "replace")
def test_bad_bytes_are_decoded_as_python_would(blocks, errors):
    corpus = Corpus("a", (lambda: iter([Document("a", blocks)]),), errors=errors)
    decoded = b"".join(chunk.data for chunk in corpus.chunks())
    assert decoded.decode() == b"".join(blocks).decode(errors=errors).removeprefix("\ufeff")


def test_a_sample_is_bounded_and_spread_over_the_text():
    texts = [f"text number {i:03}".encode() for i in range(100)]
    assert list(in_memory(*texts).texts(10_000)) == [text.decode() for text in texts]
    stretched = list(in_memory(*texts).texts(150))
    assert stretched == ["text number 000", "text number 010", "text number 020"] + [
        f"text number {i:03}" for i in range(30, 100, 10)
    ]
    assert list(in_memory(*texts).texts(10_000, end=20)) == ["text number 000", "text "]


def test_chunks_say_where_they_come_from(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}')
    first, second = open_corpus(str(tmp_path)).chunks()
    assert first == Chunk(b"one", f"{tmp_path}/a.jsonl:1", 0, True)
    assert second.source == f"{tmp_path}/a.jsonl:2"


def test_contents_count_documents_and_bytes_and_name_them_by_a_digest():
    contents = in_memory(b"one", b"", b"three").contents
    assert contents.document_bytes.tolist() == [3, 5]
    assert contents.total_bytes == 8
    assert contents.digest == in_memory(b"one", b"three").contents.digest
    others = [in_memory(b"onet", b"hree"), in_memory(b"onethree"), in_memory(b"three", b"one")]
    assert len({contents.digest, *(other.contents.digest for other in others)}) == 4


def test_the_digest_depends_on_text_and_not_on_names(tmp_path):
    for folder in ["a", "b"]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.txt").write_text("same")
    digests = {open_corpus(str(tmp_path / folder)).contents.digest for folder in ["a", "b"]}
    assert len(digests) == 1
