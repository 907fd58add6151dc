"""The checkpoint store, and `load` for checkpoints of ours and of others."""

import errno
import json
import os
import re
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from gptmini.checkpoint import safetensors_io
from gptmini.checkpoint.manifest import verify
from gptmini.checkpoint.safetensors_io import TensorFiles, file_chunks
from gptmini.checkpoint.state import Checkpoint, TrainingState
from gptmini.checkpoint.store import CheckpointStore, load_model
from gptmini.config import GPTConfig
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import DamagedError, InUseError, UserError
from gptmini.model import GPT

TINY = GPTConfig(vocab_size=257, n_layer=1, n_head=1, n_embd=4, context_length=4)
TOKENIZER = Tokenizer.train("", "bytes")


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
    model, tokenizer = load_model(path)
    tokens = torch.tensor([tokenizer.encode("abcd")])
    theirs = AutoModelForCausalLM.from_pretrained(path)
    with torch.inference_mode():
        assert (model(tokens) - theirs(tokens).logits).abs().max() < 1e-4


def test_the_best_and_the_newest_are_kept(store):
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 2.5)]:
        save(store, step, loss)
    assert store.steps() == [2, 4, 5]
    assert store.best() == store.path(2)
    assert load_model(store.run_folder)[0].config == TINY


def test_a_run_folder_without_losses_loads_its_newest(store):
    save(store, 1, seed=1)
    save(store, 2, seed=2)
    model, _ = load_model(store.run_folder)
    assert torch.equal(model.ln_f.weight, checkpoint(2, seed=2).model["ln_f.weight"])
    assert torch.equal(model.token_embedding.weight, checkpoint(2, seed=2).model["token_embedding.weight"])


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(store):
    save(store, 1, seed=1)
    newest = save(store, 2, seed=2)
    (newest / "model.safetensors").write_bytes(b"x")
    found, notes = store.latest()
    assert found.step == 1
    assert len(notes) == 1
    assert "step-00000002/model.safetensors" in notes[0]


def test_a_damaged_best_checkpoint_is_named_beside_the_newest(store):
    best = save(store, 1, val_loss=1.0)
    save(store, 2, val_loss=2.0)
    assert store.latest()[1] == []
    (best / "model.safetensors").write_bytes(b"x")
    found, notes = store.latest()
    assert found.step == 2
    assert len(notes) == 1
    assert notes[0].startswith("the best checkpoint cannot be read: ")
    assert "step-00000001/model.safetensors" in notes[0]


def test_if_no_checkpoint_is_undamaged_it_says_so(store):
    path = save(store, 1)
    (path / "config.json").unlink()
    with pytest.raises(DamagedError, match="no checkpoint is undamaged"):
        store.latest()


def test_a_step_without_manifest_and_training_is_damaged_and_not_passed_over(store):
    path = save(store, 1)
    for name in ("manifest.json", "training/state.json", "training/optimizer.safetensors"):
        (path / name).unlink()
    with pytest.raises(DamagedError, match=r"step-00000001/manifest\.json: cannot be read"):
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
    for name in (".gptmini-tmp-step-00000002-0a1b2c3d", ".tmp-step-00000003-0a1b2c3d"):  # now, and before
        (store.folder / name / "training").mkdir(parents=True)
        (store.folder / name / "training" / "half").write_bytes(b"x")
    store.clean()
    assert os.listdir(store.folder) == ["step-00000001"]


def test_a_step_folder_of_links_loads_as_the_hubs_cache_lays_it(store, tmp_path):
    path = save(store, 1, seed=3)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(files(path)):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    assert store.latest()[0].step == 1
    model, tokenizer = load_model(path)
    assert tokenizer.digest == TOKENIZER.digest
    assert torch.equal(model.ln_f.weight, checkpoint(1, seed=3).model["ln_f.weight"])
    for step in (2, 3):
        save(store, step)
    assert store.steps() == [2, 3]
    assert len(files(blobs)) == 8  # pruned are the links


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_step_that_is_a_link_is_pruned_as_a_link(store, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    save(store, 1).rename(elsewhere)
    store.path(1).symlink_to(elsewhere)
    before = files(elsewhere)
    for step in (2, 3):
        save(store, step)
    assert store.steps() == [2, 3]
    assert sorted(os.listdir(store.folder)) == ["step-00000002", "step-00000003"]
    assert files(elsewhere) == before
    verify(elsewhere)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
@pytest.mark.parametrize("target", ["checkpoint", "empty folder", "nothing"])
def test_a_link_that_a_killed_run_was_removing_is_removed(store, tmp_path, target):
    elsewhere = tmp_path / "elsewhere"
    if target == "checkpoint":
        save(store, 1).rename(elsewhere)
    elif target == "empty folder":
        elsewhere.mkdir()
    store.folder.mkdir(parents=True, exist_ok=True)
    (store.folder / ".gptmini-removed-step-00000001").symlink_to(elsewhere)
    before = files(elsewhere)
    store.clean()
    assert os.listdir(store.folder) == []
    assert files(elsewhere) == before
    assert elsewhere.exists() == (target != "nothing")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_step_that_is_a_link_to_nothing_is_no_checkpoint_and_is_replaced(store, tmp_path):
    store.folder.mkdir(parents=True)
    store.path(1).symlink_to(tmp_path / "unmounted")
    assert store.steps() == []
    verify(save(store, 1))
    assert not store.path(1).is_symlink()


def test_a_step_that_cannot_be_removed_is_named_as_the_user_knows_it(store, monkeypatch):
    save(store, 1)
    save(store, 2)
    monkeypatch.setattr(os, "unlink", lambda *args: os.stat("no such"))
    with pytest.raises(OSError, match=r"run/checkpoints/step-00000001'$"):
        save(store, 3)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOMEM, errno.EACCES])
def test_what_the_machine_cannot_read_just_now_is_not_called_damaged_and_stays(store, monkeypatch, number):
    for step in (1, 2):
        save(store, step)
    real = os.open

    def failing(path, *args, **keywords):
        if str(path).endswith("step-00000002/model.safetensors"):
            raise OSError(number, os.strerror(number), path)
        return real(path, *args, **keywords)

    monkeypatch.setattr(os, "open", failing)
    reads = (store.latest, lambda: load_model(store.run_folder), lambda: load_model(store.path(2)))
    for read in (*reads, lambda: save(store, 2), lambda: verify(store.path(2))):
        with pytest.raises(OSError, match=r"step-00000002/model\.safetensors") as raised:
            read()
        assert raised.value.errno == number
        assert not isinstance(raised.value, DamagedError)
    monkeypatch.undo()
    assert store.latest()[0].step == 2


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pipes in folders")
def test_a_pipe_in_place_of_a_file_is_refused_and_one_beside_it_is_not_read(store):
    path = save(store, 1)
    os.mkfifo(path / "pipe")
    verify(path)
    for name in ("model.safetensors", "manifest.json"):
        (path / name).unlink()
        os.mkfifo(path / name)
        with pytest.raises(DamagedError, match=f"{name}: not a regular file"):
            verify(path)


def test_a_disk_that_corrupts_a_write_is_named_by_the_place_that_the_user_knows(store, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, bytes([data[0] ^ 1]) + bytes(data[1:])))
    with pytest.raises(DamagedError, match=r"checkpoints/step-00000001/\w+") as raised:
        save(store, 1)
    assert "tmp-step" not in str(raised.value)


def test_files_of_others_under_temporary_names_are_left_alone(store):
    save(store, 1)
    theirs = [
        store.run_folder / ".tmp-mywork" / "x",
        store.run_folder / ".tmp-config.yaml",
        store.run_folder / ".tmp-notes-0a1b2c3d",
        store.folder / ".tmp-x",
        store.folder / ".gptmini-tmp-mine" / "x",
    ]
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    store.clean()
    assert all(path.read_text() == "mine" for path in theirs)


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
        load_model(tmp_path / "run")


@pytest.fixture(scope="module")
def theirs():
    """A GPT-2 that transformers made."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()


def assert_same_logits(model, theirs, tolerance=1e-4):
    tokens = torch.arange(32).view(2, 16)
    with torch.inference_mode():
        assert (model(tokens) - theirs(tokens).logits).abs().max() < tolerance


def test_a_folder_that_transformers_wrote_loads_with_the_same_logits(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    for name in ("whole", "sharded"):
        model, tokenizer = load_model(tmp_path / name)
        assert tokenizer is None
        assert_same_logits(model, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_load_as_float32(theirs, tmp_path, dtype):
    theirs.to(dtype).save_pretrained(tmp_path / "half")
    model, _ = load_model(tmp_path / "half")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_same_logits(model, theirs.float())


def test_a_loaded_model_is_like_one_that_was_built(store):
    model, tokenizer = load_model(save(store, 1))
    built = GPT(TINY)
    assert not model.training
    assert tokenizer.digest == TOKENIZER.digest
    assert model.lm_head.weight is model.token_embedding.weight
    for (name, loaded), (name_too, new) in zip(
        model.named_parameters(), built.named_parameters(), strict=True
    ):
        assert (name, loaded.shape, loaded.stride()) == (name_too, new.shape, new.stride())
        assert loaded.requires_grad


def test_pickled_weights_alone_are_refused(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "hub")
    (tmp_path / "hub" / "model.safetensors").rename(tmp_path / "hub" / "pytorch_model.bin")
    with pytest.raises(UserError, match="weights in pickle files are never loaded"):
        load_model(tmp_path / "hub")


def test_weights_of_another_size_than_the_config_are_refused(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "hub")
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    (tmp_path / "hub" / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    with pytest.raises(UserError, match=r"hub: tensor h\.2\.attn\.c_attn\.bias is missing \(and 11 more\)"):
        load_model(tmp_path / "hub")


def test_a_step_folder_of_a_later_format_is_not_called_damaged(store, monkeypatch):
    path = save(store, 1)
    monkeypatch.setattr("gptmini.checkpoint.manifest.FORMAT_VERSION", 0)
    for read in (lambda: verify(path), store.latest, lambda: load_model(store.run_folder)):
        with pytest.raises(UserError, match="format version 1 is not known to this gptmini"):
            read()


def test_tensor_files_are_safetensors(tmp_path):
    tensors = {
        "matrix": torch.randn(3, 5),
        "transposed": torch.randn(4, 2).T,
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "half": torch.randn(7, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "counts": torch.tensor([2**40]),
    }
    path, other = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    path.write_bytes(b"".join(file_chunks(tensors)))
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, other)
    theirs, ours = safetensors.torch.load_file(path), TensorFiles([other])
    for name, tensor in tensors.items():
        assert theirs[name].dtype == ours[name].dtype == tensor.dtype
        assert torch.equal(theirs[name], tensor)
        assert torch.equal(ours[name], tensor)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_an_empty_tensor_file_is_a_tensor_file(tmp_path):
    (tmp_path / "empty.safetensors").write_bytes(b"".join(file_chunks({})))
    assert dict(TensorFiles([tmp_path / "empty.safetensors"])) == {}
    assert safetensors.torch.load_file(tmp_path / "empty.safetensors") == {}


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("No such file or directory: x"),  # what safetensors makes of "too many open files"
        RuntimeError("unable to mmap 6680 bytes from file <x>: Cannot allocate memory (12)\nstack trace"),
    ],
)
def test_a_machine_that_cannot_open_weights_is_no_damage(tmp_path, monkeypatch, error):
    def fails(*args, **options):
        raise error

    path = tmp_path / "x.safetensors"
    path.write_bytes(b"".join(file_chunks({})))
    monkeypatch.setattr(safetensors_io, "safe_open", fails)
    with pytest.raises(OSError, match=re.escape(str(path))) as raised:
        TensorFiles([path])
    assert not isinstance(raised.value, DamagedError)
    assert "\n" not in str(raised.value)


def test_weights_that_vanish_while_they_are_mapped_are_missing(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    real = torch.UntypedStorage.from_file

    def late(*args, **kwargs):
        path.unlink()  # as a run that prunes, between safe_open's look at the header and its mapping
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", late)
    with pytest.raises(DamagedError, match=r"model\.safetensors: cannot be read: no such file$"):
        TensorFiles([path])
