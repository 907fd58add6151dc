from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptmini.config import DataConfig, TokenizerConfig
from gptmini.data import corpus as corpus_module
from gptmini.data.batching import WindowSampler, validation_batches
from gptmini.data.datasets import cache_folder
from gptmini.data.prepare import prepare
from gptmini.errors import UserError

BYTES = TokenizerConfig(kind="bytes")


def prepared(tmp_path, text, tokenizer=BYTES, val_fraction=0.1, context_length=4):
    path = tmp_path / "text.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return prepare(
        DataConfig(corpus=str(path), val_fraction=val_fraction), tokenizer, context_length, quiet=True
    )


@pytest.mark.parametrize(("length", "context_length"), [(5, 4), (9, 4), (103, 7), (1000, 16)])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_window_of_an_epoch_is_seen_exactly_once(length, context_length, batch_size):
    windows = WindowSampler(np.arange(length), context_length, seed=5)
    steps = -(-2 * windows.per_epoch // batch_size)
    seen = np.concatenate([windows.starts(step, batch_size) for step in range(steps)])
    for epoch in range(2):
        starts = np.sort(seen[epoch * windows.per_epoch : (epoch + 1) * windows.per_epoch])
        assert len(starts) == windows.per_epoch
        assert set(np.diff(starts).tolist()) <= {context_length}
        assert starts[0] < context_length
        assert starts[-1] + context_length < length


def test_a_batch_depends_on_seed_and_step_alone():
    tokens = np.arange(1000)
    a, b = WindowSampler(tokens, 8, seed=1), WindowSampler(tokens, 8, seed=1)
    b.starts(3, 4)
    assert a.starts(7, 4).tolist() == b.starts(7, 4).tolist()
    assert a.starts(7, 4).tolist() != WindowSampler(tokens, 8, seed=2).starts(7, 4).tolist()
    joined = np.concatenate([a.starts(step, 2) for step in range(4)])
    assert joined.tolist() == np.concatenate([a.starts(step, 4) for step in range(2)]).tolist()


def test_targets_are_the_inputs_shifted_by_one():
    windows = WindowSampler(np.arange(100, dtype=np.uint16), 8, seed=0)
    inputs, targets = windows.batch(windows.starts(0, 4))
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape == (4, 8)
    assert torch.equal(inputs + 1, targets)


@given(length=st.integers(2, 200), context_length=st.integers(1, 30), batch_size=st.integers(1, 5))
def test_a_validation_pass_predicts_every_token_but_the_first_once(length, context_length, batch_size):
    batches = list(validation_batches(np.arange(length), context_length, batch_size))
    targets = torch.cat([t.flatten() for _, t in batches])
    assert targets.tolist() == list(range(1, length))
    assert all(torch.equal(inputs + 1, t) for inputs, t in batches)


def test_a_limited_validation_pass_predicts_that_many_tokens():
    batches = validation_batches(np.arange(100), 8, 4, max_tokens=20)
    assert sum(targets.numel() for _, targets in batches) == 20


def test_one_plain_file_is_split_at_the_exact_fraction(tmp_path):
    data = prepared(tmp_path, "abcdefghij" * 10)
    assert bytes(data.train.tolist()) == b"abcdefghij" * 9
    assert bytes(data.val.tolist()) == b"abcdefghij"
    assert (data.meta.train_bytes, data.meta.val_bytes) == (90, 10)


def test_the_split_never_cuts_a_character(tmp_path):
    data = prepared(tmp_path, "é" * 51, val_fraction=0.1)
    assert bytes(data.train.tolist()).decode() + bytes(data.val.tolist()).decode() == "é" * 51


def test_documents_are_separated_and_split_at_their_ends(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.txt").write_text(str(i) * (9 + i % 2))
    data = prepare(DataConfig(corpus=str(folder), val_fraction=0.2), BYTES, 4, quiet=True)
    end = data.tokenizer.end_of_text
    documents = [str(i).encode() * (9 + i % 2) for i in range(10)]
    expected = [list(document) for document in documents]
    assert data.train.tolist() == [t for d in expected[:7] for t in [*d, end]] + expected[7]
    assert data.val.tolist() == [*expected[8], end, *expected[9]]


def test_prepared_tokens_are_found_again_and_a_damaged_folder_is_made_anew(tmp_path):
    first = prepared(tmp_path, "some text " * 20)
    tokens = first.train.tolist()
    (folder,) = (cache_folder() / "tokens").glob("*/tokens")
    before = (folder / "train.bin").stat().st_mtime_ns
    assert prepared(tmp_path, "some text " * 20).digest == first.digest
    assert (folder / "train.bin").stat().st_mtime_ns == before
    (folder / "train.bin").write_bytes(b"x")
    again = prepared(tmp_path, "some text " * 20)
    assert again.train.tolist() == tokens


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


def test_bytes_of_text_behind_tokens_are_counted(tmp_path):
    data = prepared(tmp_path, "é€x" * 40, TokenizerConfig(kind="chars"))
    tokens = torch.tensor([data.tokenizer.encode("é€x"), data.tokenizer.encode("xxx")])
    assert data.count_bytes(tokens) == 2 + 3 + 1 + 3


def test_a_long_text_goes_through_in_chunks_with_the_ids_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "CHUNK_BYTES", 5000)
    text = "".join(f"Line {i}  is   here,\n\n\tand 12345 more...\n" for i in range(800))
    data = prepared(tmp_path, text, TokenizerConfig(kind="bpe", vocab_size=400))
    whole = data.tokenizer.encode(text[: data.meta.train_bytes])
    assert data.train.tolist() == whole


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, which only Linux has")
def test_a_process_does_not_grow_by_the_windows_that_it_reads(tmp_path):
    def mapped_bytes():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssFile"))

    np.arange(2**24, dtype="<u4").astype("<u2").tofile(tmp_path / "tokens.bin")
    windows = WindowSampler(np.memmap(tmp_path / "tokens.bin", "<u2", "r"), context_length=64, seed=0)
    before = mapped_bytes()
    for step in range(100):
        inputs, _ = windows.batch(windows.starts(step, 64))
        assert int(inputs[3, 5]) == (int(windows.starts(step, 64)[3]) + 5) % 2**16
    assert mapped_bytes() - before < 2**22  # of 2^25 bytes that 6,400 windows lie in
