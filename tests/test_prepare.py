import subprocess
import sys

import numpy as np
import pytest

from gptmini.config import DataConfig, TokenizerConfig
from gptmini.data import corpus as corpus_module
from gptmini.data.corpus import Corpus, open_corpus
from gptmini.data.datasets import cache_folder
from gptmini.data.documents import Document
from gptmini.data.prepare import encode_corpus, prepare, prepare_corpus
from gptmini.errors import UserError

BYTES = TokenizerConfig(kind="bytes")
BPE = TokenizerConfig(kind="bpe", vocab_size=300)
CHARS = TokenizerConfig(kind="chars")


def corpus_of(*texts: bytes, name="texts") -> Corpus:
    return Corpus(name, (lambda: iter([Document(f"{name}/{i}", [text]) for i, text in enumerate(texts)]),))


def decoded(data, tokens) -> list[bytes]:
    """The documents of a stream of ids."""
    tokens = tokens[:]
    ends = np.flatnonzero(tokens == data.tokenizer.end_of_text)
    return [data.tokenizer.decode_bytes(part.tolist()) for part in np.split(tokens, ends)]


def prepared(tmp_path, text, tokenizer=BYTES, val_fraction=0.1, context_length=4, quiet=True):
    path = tmp_path / "text.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return prepare(DataConfig(corpus=str(path), val_fraction=val_fraction), tokenizer, context_length, quiet)


def test_one_plain_file_is_split_at_the_exact_fraction(tmp_path):
    data = prepared(tmp_path, "abcdefghij" * 10)
    assert bytes(data.train[:].tolist()) == b"abcdefghij" * 9
    assert bytes(data.val[:].tolist()) == b"abcdefghij"
    assert (data.meta.train_bytes, data.meta.val_bytes) == (90, 10)


@pytest.mark.parametrize(
    ("texts", "val_fraction", "first"),
    [
        ([b"one document " * 9], 0.1, "o"),
        ([b"two " * 9, b"documents " * 9, b"to train on " * 9], 0.1, None),
        ([b"one " * 9, b"and one for validation " * 9], 0.8, "o"),
        ([b"", b"document " * 9, b""], 0.1, "d"),  # empty ones are left out
    ],
)
def test_texts_start_from_the_first_token_where_no_end_of_text_is_trained_on(texts, val_fraction, first):
    data = prepare_corpus(corpus_of(*texts), val_fraction, BYTES, 4, quiet=True)
    end = data.tokenizer.end_of_text
    assert (end in data.train[:]) == (first is None)
    assert data.tokenizer.start_token == (end if first is None else ord(first))


def test_the_split_never_cuts_a_character(tmp_path):
    data = prepared(tmp_path, "é" * 51, val_fraction=0.1)
    assert bytes(data.train[:].tolist()).decode() + bytes(data.val[:].tolist()).decode() == "é" * 51


def test_documents_are_separated_and_split_at_their_ends(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.txt").write_text(str(i) * (9 + i % 2))
    data = prepare(DataConfig(corpus=str(folder), val_fraction=0.2), BYTES, 4, quiet=True)
    end = data.tokenizer.end_of_text
    documents = [str(i).encode() * (9 + i % 2) for i in range(10)]
    expected = [list(document) for document in documents]
    assert data.train[:].tolist() == [t for d in expected[:7] for t in [*d, end]] + expected[7]
    assert data.val[:].tolist() == [*expected[8], end, *expected[9]]


def test_another_text_split_or_tokenizer_has_another_digest(tmp_path):
    text = "some text " * 20
    digests = {
        prepared(tmp_path, text).digest,
        prepared(tmp_path, text + "!").digest,
        prepared(tmp_path, text, val_fraction=0.2).digest,
        prepared(tmp_path, text, TokenizerConfig(kind="chars")).digest,
    }
    assert len(digests) == 4


@pytest.mark.parametrize(("text", "split"), [("abc", "training"), ("abcdefghijklmnopqrst", "validation")])
def test_a_split_shorter_than_a_window_is_refused_with_the_numbers(tmp_path, text, split):
    with pytest.raises(UserError, match=rf"the {split} split has \d+ tokens, but one window needs .* = 5"):
        prepared(tmp_path, text)


def test_a_long_text_goes_through_in_chunks_with_the_ids_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "CHUNK_BYTES", 5000)
    text = "".join(f"Line {i}  is   here,\n\n\tand 12345 more...\n" for i in range(800))
    data = prepared(tmp_path, text, TokenizerConfig(kind="bpe", vocab_size=400))
    whole = data.tokenizer.encode(text[: data.meta.train_bytes])
    assert data.train[:].tolist() == whole


def test_a_separate_validation_corpus_is_used_whole():
    data = prepare_corpus(corpus_of(b"train one", b"train two"), corpus_of(b"val text"), BYTES, 4, quiet=True)
    assert decoded(data, data.train) == [b"train one", b"train two"]
    assert decoded(data, data.val) == [b"val text"]
    assert (data.meta.train_bytes, data.meta.val_bytes, data.meta.documents) == (18, 8, 3)


@pytest.mark.parametrize("kind", ["bytes", "bpe", "chars"])
def test_paragraphs_of_the_training_text_are_left_out_of_whole_validation_documents(kind):
    texts = [f"paragraph {i}\n\nshared {i % 3}\n".encode() for i in range(20)]
    data = prepare_corpus(corpus_of(*texts), 0.1, TokenizerConfig(kind=kind), 4, quiet=True)
    assert decoded(data, data.train) == texts[:18]
    assert decoded(data, data.val) == [b"paragraph 18", b"paragraph 19"]
    assert data.meta.val_bytes == 24
    assert data.meta.repeated_bytes == len(b"\n\nshared 0\n") * 2
    assert data.tokenizer.token_byte_lengths[data.val[:]].sum() == data.meta.val_bytes


def test_a_validation_text_that_is_all_known_is_refused():
    with pytest.raises(
        UserError, match=r"validation split has 0 tokens \(9 bytes that also occur in the training"
    ):
        prepare_corpus(corpus_of(b"same text"), corpus_of(b"same text", name="val"), BYTES, 4, quiet=True)


def test_characters_of_a_separate_validation_corpus_are_known():
    data = prepare_corpus(
        corpus_of(b"abcabc"), corpus_of("ßßßßß".encode()), TokenizerConfig(kind="chars"), 2, quiet=True
    )
    assert data.tokenizer.decode(data.val[:].tolist()) == "ßßßßß"


def test_merges_are_learned_from_the_training_text_alone():
    data = prepare_corpus(corpus_of(b"ab" * 500), corpus_of(b"xyxyxyxy"), BPE, 2, quiet=True)
    assert b"ab" in data.tokenizer.tokens
    assert b"xy" not in data.tokenizer.tokens


def test_many_short_documents_keep_their_order_and_their_ends():
    texts = [f"document number {i}".encode() for i in range(20_000)]
    data = prepare_corpus(corpus_of(*texts), 0.01, BPE, 4, quiet=True)
    assert decoded(data, data.train) + decoded(data, data.val) == texts
    assert data.train[-1:] != data.tokenizer.end_of_text
    assert decoded(data, encode_corpus(corpus_of(*texts[:5]), data.tokenizer)) == texts[:5]


def test_a_vocabulary_above_16_bits_is_stored_in_32():
    characters = "".join(chr(c) for c in range(0x10000, 0x20200))
    data = prepare_corpus(
        corpus_of((characters * 2).encode()), 0.2, TokenizerConfig(kind="chars"), 4, quiet=True
    )
    assert data.meta.dtype == "uint32"
    assert data.train[:0].dtype == np.dtype("<u4")
    assert data.tokenizer.decode(data.train[-1000:].tolist() + data.val[:].tolist()).endswith(
        characters[-1000:]
    )


def test_the_config_says_what_validates_which_field_is_text_and_what_becomes_of_bad_bytes(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"body": "train text"}\n{"body": "and more"}\n')
    (tmp_path / "val.txt").write_bytes(b"val \xff text")
    config = DataConfig(
        corpus=str(tmp_path / "*.jsonl"),
        val_corpus=str(tmp_path / "val.txt"),
        text_field="body",
        errors="ignore",
    )
    data = prepare(config, CHARS, 4, quiet=True)
    assert decoded(data, data.train) == [b"train text", b"and more"]
    assert decoded(data, data.val) == [b"val  text"]
    with pytest.raises(UserError, match=r"val\.txt: not UTF-8 text at byte 4"):
        prepare(config.model_copy(update={"errors": "strict"}), CHARS, 4, quiet=True)
    with pytest.raises(UserError, match=r"data\.val_corpus = .*nowhere: no such file"):
        prepare(config.model_copy(update={"val_corpus": "nowhere"}), CHARS, 4, quiet=True)


def test_what_is_not_utf8_is_named_with_file_and_offset(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine " * 100_000 + b"\xe9t\xe9")
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8 text at byte 500000 \(0xe9\)"):
        prepare(DataConfig(corpus=str(tmp_path / "a.txt")), BPE, 4, quiet=True)
    assert not list((cache_folder() / "tokens").rglob("*.bin"))
    replaced = prepare_corpus(open_corpus(str(tmp_path / "a.txt"), errors="replace"), 0.1, BPE, 4, quiet=True)
    assert replaced.tokenizer.decode(replaced.val[:].tolist()).endswith("fine \ufffdt\ufffd")


def test_preparing_imports_no_torch():
    code = "import sys, gptmini.data.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_short_split_is_named_as_the_user_gave_it(tmp_path):
    (tmp_path / "a.txt").write_text("a long enough text. " * 9)
    (tmp_path / "b.txt").write_text("ab")
    config = DataConfig(corpus=str(tmp_path / "a.txt"), val_corpus=str(tmp_path / "b.txt"))
    with pytest.raises(
        UserError, match=r"^data\.val_corpus = .*b\.txt: the validation split has 2 tokens"
    ) as error:
        prepare(config, BYTES, 4, quiet=True)
    assert "val_fraction" not in str(error.value)
    with pytest.raises(UserError, match=r"^data\.corpus = .*b\.txt: the training split has .*val_fraction"):
        prepare(DataConfig(corpus=str(tmp_path / "b.txt")), BYTES, 4, quiet=True)
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(UserError, match=r"^data\.val_corpus = .*: the validation split has 0 tokens"):
        prepare(config, BYTES, 4, quiet=True)
