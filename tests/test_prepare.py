import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gptmini.config import DataConfig, TokenizerConfig
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
    ends = np.flatnonzero(tokens == data.tokenizer.end_of_text)
    return [data.tokenizer.decode_bytes(part.tolist()) for part in np.split(tokens, ends)]


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
    assert data.tokenizer.token_byte_lengths[data.val].sum() == data.meta.val_bytes


def test_a_validation_text_that_is_all_known_is_refused():
    with pytest.raises(
        UserError, match=r"validation split has 0 tokens \(9 bytes that also stand in the training"
    ):
        prepare_corpus(corpus_of(b"same text"), corpus_of(b"same text", name="val"), BYTES, 4, quiet=True)


def test_characters_of_a_separate_validation_corpus_are_known():
    data = prepare_corpus(
        corpus_of(b"abcabc"), corpus_of("ßßßßß".encode()), TokenizerConfig(kind="chars"), 2, quiet=True
    )
    assert data.tokenizer.decode(data.val.tolist()) == "ßßßßß"


def test_merges_are_learned_from_the_training_text_alone():
    data = prepare_corpus(corpus_of(b"ab" * 500), corpus_of(b"xyxyxyxy"), BPE, 2, quiet=True)
    assert b"ab" in data.tokenizer.tokens
    assert b"xy" not in data.tokenizer.tokens


def test_many_short_documents_keep_their_order_and_their_ends():
    texts = [f"document number {i}".encode() for i in range(20_000)]
    data = prepare_corpus(corpus_of(*texts), 0.01, BPE, 4, quiet=True)
    assert decoded(data, data.train) + decoded(data, data.val) == texts
    assert data.train[-1] != data.tokenizer.end_of_text
    assert decoded(data, encode_corpus(corpus_of(*texts[:5]), data.tokenizer)) == texts[:5]


def test_a_vocabulary_above_16_bits_is_stored_in_32():
    characters = "".join(chr(c) for c in range(0x10000, 0x20200))
    data = prepare_corpus(
        corpus_of((characters * 2).encode()), 0.2, TokenizerConfig(kind="chars"), 4, quiet=True
    )
    assert data.meta.dtype == "uint32"
    assert data.train.dtype == np.dtype("<u4")
    assert data.tokenizer.decode(data.train[-1000:].tolist() + data.val.tolist()).endswith(characters[-1000:])


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


def test_a_learned_tokenizer_that_was_changed_is_learned_anew():
    first = prepare_corpus(corpus_of(b"some text " * 50), 0.1, BPE, 4, quiet=True)
    (file,) = cache_folder().glob("tokenizers/*/tokenizer/tokenizer.json")
    other = json.loads(file.read_text())
    other["model"]["vocab"].pop(other["model"]["merges"].pop().replace(" ", ""))
    other["added_tokens"][0]["id"] -= 1
    file.write_text(json.dumps(other))
    again = prepare_corpus(corpus_of(b"some text " * 50), 0.1, BPE, 4, quiet=True)
    assert again.tokenizer.digest == first.tokenizer.digest


def test_what_is_not_utf8_is_named_with_file_and_offset(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine " * 100_000 + b"\xe9t\xe9")
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8 text at byte 500000 \(0xe9\)"):
        prepare(DataConfig(corpus=str(tmp_path / "a.txt")), BPE, 4, quiet=True)
    assert not list((cache_folder() / "tokens").rglob("*.bin"))
    replaced = prepare_corpus(open_corpus(str(tmp_path / "a.txt"), errors="replace"), 0.1, BPE, 4, quiet=True)
    assert replaced.tokenizer.decode(replaced.val.tolist()).endswith("fine \ufffdt\ufffd")


def test_a_text_that_changes_while_it_is_read_is_refused_and_leaves_nothing():
    passes = []

    def read():
        passes.append(1)
        return iter([Document("a", [b"some text " * 20 + str(len(passes)).encode()])])

    with pytest.raises(UserError, match="changed while it was read"):
        prepare_corpus(Corpus("a", (read,)), 0.1, BYTES, 4, quiet=True)
    assert not list((cache_folder() / "tokens").rglob("*.bin"))


def test_a_text_that_changes_between_runs_is_prepared_anew(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("first text " * 20)
    first = prepare(DataConfig(corpus=str(path)), BYTES, 4, quiet=True)
    path.write_text("other text " * 20)
    second = prepare(DataConfig(corpus=str(path)), BYTES, 4, quiet=True)
    assert decoded(second, second.train)[0].startswith(b"other")
    assert decoded(first, first.train)[0].startswith(b"first")
    assert first.digest != second.digest


def test_a_tokenizer_is_learned_once_for_a_text(monkeypatch):
    first = prepare_corpus(corpus_of(b"some text " * 50), 0.1, BPE, 4, quiet=True)
    monkeypatch.setattr("gptmini.data.prepare.build_tokenizer", None)
    again = prepare_corpus(corpus_of(b"some text " * 50), 0.1, BPE, 4, quiet=True)
    given = prepare_corpus(corpus_of(b"some text " * 50), 0.1, first.tokenizer, 4, quiet=True)
    assert first.digest == again.digest == given.digest
    assert len(list((cache_folder() / "tokens").iterdir())) == 1


@pytest.mark.parametrize("damage", [lambda f: f.write_text("{"), lambda f: f.unlink()])
@pytest.mark.parametrize("name", ["tokenizers/*/tokenizer/tokenizer.json", "tokens/*/tokens/meta.json"])
def test_a_damaged_cache_is_made_anew(name, damage):
    first = prepare_corpus(corpus_of(b"some text " * 50), 0.1, BPE, 4, quiet=True)
    (file,) = cache_folder().glob(name)
    damage(file)
    again = prepare_corpus(corpus_of(b"some text " * 50), 0.1, BPE, 4, quiet=True)
    assert again.digest == first.digest
    assert again.train.tolist() == first.train.tolist()
    assert json.loads(file.read_text())


SCRIPT = """
import sys
from gptmini.config import DataConfig, TokenizerConfig
from gptmini.data.prepare import prepare
data = prepare(DataConfig(corpus=sys.argv[1]), TokenizerConfig(kind="bpe", vocab_size=300), 4)
print(data.digest, data.meta.train_tokens, len(data.train))
"""


def start(path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def test_processes_that_prepare_the_same_text_at_once_get_the_same(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"line {i} of the text\n" for i in range(50_000)))
    processes = [start(tmp_path / "a.txt") for _ in range(4)]
    results = {process.communicate(timeout=100)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(results) == 1
    assert len(list((cache_folder() / "tokens").iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_preparation_leaves_nothing_that_counts(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"line {i} of the text\n" for i in range(300_000)))
    killed = start(tmp_path / "a.txt")
    while not list((cache_folder() / "tokens").glob("*/.tmp-*/train.bin")):
        assert killed.poll() is None, "too fast for this test: make the text longer"
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not list((cache_folder() / "tokens").glob("*/tokens"))
    again = start(tmp_path / "a.txt")
    out, errors = again.communicate(timeout=100)
    assert (again.returncode, errors) == (0, "")
    assert out.split()[1] == out.split()[2]
    assert not list((cache_folder() / "tokens").glob("*/.tmp-*"))


def test_preparing_imports_no_torch():
    code = "import sys, gptmini.data.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
