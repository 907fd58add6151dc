import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from gptmini.checkpoint.store import Checkpoint, CheckpointStore, TrainingState, load, verify
from gptmini.config import GPTConfig, TokenizerConfig
from gptmini.data.tokenizer import build_tokenizer
from gptmini.errors import DamagedError, InUseError, UserError
from gptmini.model import GPT

TINY = GPTConfig(vocab_size=257, n_layer=1, n_head=1, n_embd=4, context_length=4)
TOKENIZER = build_tokenizer(TokenizerConfig(kind="bytes"), None)


def checkpoint(step, val_loss=None, seed=0):
    torch.manual_seed(seed)
    state = TrainingState(
        step=step, tokens=step, val_loss=val_loss, config={}, data_digest="d", tokenizer_digest="t",
        environment={},
    )  # fmt: skip
    weights = {name: p.detach() for name, p in GPT(TINY).named_parameters()}
    return Checkpoint(step, weights, {"ln_f.weight/exp_avg": torch.randn(4)}, state)


def save(store, step, val_loss=None, seed=0):
    return store.save(checkpoint(step, val_loss, seed), TINY, TOKENIZER)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "run", keep=2)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_is_saved_comes_back_bit_for_bit(store):
    saved = checkpoint(7, val_loss=1.5)
    store.save(saved, TINY, TOKENIZER)
    found, notes = store.latest()
    assert notes == []
    assert found.state == saved.state
    assert all(torch.equal(found.model[name], saved.model[name]) for name in saved.model)
    assert torch.equal(found.optimizer["ln_f.weight/exp_avg"], saved.optimizer["ln_f.weight/exp_avg"])


def test_a_steps_folder_loads_in_transformers_with_the_same_logits(store):
    path = save(store, 1)
    model, tokenizer = load(path)
    tokens = torch.tensor([tokenizer.encode("abcd")])
    theirs = AutoModelForCausalLM.from_pretrained(path)
    with torch.inference_mode():
        assert (model(tokens) - theirs(tokens).logits).abs().max() < 1e-4


def test_the_best_and_the_newest_are_kept(store):
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 2.5)]:
        save(store, step, loss)
    assert store.steps() == [2, 4, 5]
    assert store.best() == store.path(2)
    assert load(store.run_folder)[0].config == TINY


def test_a_run_folder_without_losses_loads_its_newest(store):
    save(store, 1, seed=1)
    save(store, 2, seed=2)
    model, _ = load(store.run_folder)
    assert torch.equal(model.ln_f.weight, checkpoint(2, seed=2).model["ln_f.weight"])
    assert torch.equal(model.token_embedding.weight, checkpoint(2, seed=2).model["token_embedding.weight"])


def test_every_flipped_bit_is_found_and_the_file_named(store):
    path = save(store, 1)
    flips = 0
    for file in files(path):
        data = file.read_bytes()
        for i in range(0, len(data), max(1, len(data) // 40)):
            spoiled = bytearray(data)
            spoiled[i] ^= 1 << (i % 8)
            file.write_bytes(spoiled)
            with pytest.raises((DamagedError, UserError), match=file.name.replace(".", r"\.")):
                verify(path)
            flips += 1
        file.write_bytes(data)
    verify(path)
    assert flips > 200


def test_truncated_longer_missing_extra_and_linked_files_are_found(store, tmp_path):
    path = save(store, 1)
    for file in files(path):
        data = file.read_bytes()
        for spoiled in (data[:-1], b"", data + b"\0"):
            file.write_bytes(spoiled)
            with pytest.raises(DamagedError):
                verify(path)
        file.unlink()
        with pytest.raises(DamagedError):
            verify(path)
        (tmp_path / "elsewhere").write_bytes(data)
        file.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(DamagedError, match="plain file"):
            verify(path)
        file.unlink()
        file.write_bytes(data)
    (path / "extra.bin").write_bytes(b"x")
    with pytest.raises(DamagedError, match=r"extra\.bin: not part of the checkpoint"):
        verify(path)


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(store):
    save(store, 1, seed=1)
    newest = save(store, 2, seed=2)
    (newest / "model.safetensors").write_bytes(b"x")
    found, notes = store.latest()
    assert found.step == 1
    assert len(notes) == 1
    assert "step-00000002/model.safetensors" in notes[0]


def test_if_no_checkpoint_is_undamaged_it_says_so(store):
    path = save(store, 1)
    (path / "config.json").unlink()
    with pytest.raises(DamagedError, match="no checkpoint is undamaged"):
        store.latest()


def test_saving_a_step_again_leaves_it_and_replaces_a_damaged_one(store):
    path = save(store, 1)
    before = {file: file.stat().st_mtime_ns for file in files(path)}
    save(store, 1, seed=5)
    assert {file: file.stat().st_mtime_ns for file in files(path)} == before
    (path / "config.json").unlink()
    save(store, 1, seed=5)
    verify(path)


def test_a_second_process_cannot_take_the_lock_and_a_killed_one_frees_it(store):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom gptmini.checkpoint.store import CheckpointStore\n"
        "with CheckpointStore(Path(sys.argv[1]), 1).lock():\n    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(store.run_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InUseError, match="in use by another process"), store.lock():
            pass
        process.kill()
        process.wait()
    with store.lock():
        pass


def test_leftovers_of_a_crash_are_removed(store):
    save(store, 1)
    (store.folder / ".tmp-step-00000002-abc").mkdir()
    (store.folder / ".tmp-step-00000002-abc" / "half").write_bytes(b"x")
    store.clean()
    assert os.listdir(store.folder) == ["step-00000001"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "holds no checkpoint"),
        (lambda folder: (folder / "checkpoints").mkdir(parents=True), "has no checkpoint yet"),
    ],
)
def test_a_folder_without_checkpoint_is_a_user_error(tmp_path, make, message):
    make(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "run")
