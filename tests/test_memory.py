"""Out of memory is one line; train.micro_batch_size: auto finds what fits and trains the same."""

import threading

import numpy as np
import pytest
import torch
import yaml

import gptmini
from gptmini.checkpoint.store import CheckpointStore
from gptmini.cli.main import main
from gptmini.config import Config, GPTConfig
from gptmini.errors import OutOfMemoryError, UserError
from gptmini.memory import available_bytes, explain_shortage
from gptmini.training import estimate, micro_batch
from gptmini.training.estimate import check_memory, fitting_micro_batch_size
from gptmini.training.runtime import check_threads
from gptmini.training.trainer import Trainer

CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
)
CPU += "allocate 120000000000 bytes. Error code 12 (Cannot allocate memory)"
CUDA = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which "
CUDA += "5.06 GiB is free. Including non-PyTorch memory, this process has 74.04 GiB memory in use."


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError(CPU), r"out of memory \(111\.76 GiB asked for(, [\d.,]+ GiB available)?\): lower it"),
        (
            torch.OutOfMemoryError(CUDA),
            r"out of memory \(20\.00 GiB asked for, 5\.06 GiB available\): lower it",
        ),
        (MemoryError(), r"out of memory( \([\d.,]+ GiB available\))?: lower it"),
        (MemoryError("std::bad_alloc"), "out of memory.*: lower it"),
        (RuntimeError("Storage size calculation overflowed with sizes=[9, 9]"), "out of memory.*: lower it"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "out of memory.*: lower it"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "out of memory.*: lower it"),
        (OSError(12, "Cannot allocate memory"), "out of memory.*: lower it"),
        (
            RuntimeError("can't start new thread"),
            "no more threads can be started: .* or lower runtime.threads",
        ),
        (
            BlockingIOError(11, "Resource temporarily unavailable"),
            "no more threads can be started: .* or lower runtime.threads",
        ),
    ],
)
def test_a_shortage_is_one_line(error, line):
    with pytest.raises(OutOfMemoryError, match=f"^{line}$"), explain_shortage("lower it"):
        raise error


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes differ"), OSError(12, "Cannot allocate memory", "a file"), ImportError("no torch")],
)
def test_another_error_stays_what_it_is(error):
    with pytest.raises(type(error), match=str(error.args[-1])), explain_shortage("lower it"):
        raise error


def test_threads_that_cannot_start_are_noticed_before_openmp_ends_the_process(monkeypatch):
    start, started = threading.Thread.start, []

    def limited(thread):
        started.append(thread)
        if len(started) > 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(OutOfMemoryError, match="no more threads can be started"), explain_shortage(""):
        check_threads(4)
    for thread in started[:3]:
        thread.join(10)
        assert not thread.is_alive()


def test_memory_that_no_machine_has_is_a_shortage():
    with pytest.raises(OutOfMemoryError, match="asked for"), explain_shortage("lower it"):
        torch.empty(2**60)
    with pytest.raises(OutOfMemoryError, match="asked for"), explain_shortage("lower it"):
        np.empty(2**57)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 60)
    return {
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": 16, "dropout": 0.1},
        "data": {"corpus": str(tmp_path / "text.txt")},
        "tokenizer": {"kind": "bytes"},
        "train": {
            "out_dir": str(tmp_path / "run"),
            "max_steps": 4,
            "batch_size": 12,
            "eval_interval": 4,
            "micro_batch_size": "auto",
        },
        "runtime": {"device": "cpu", "threads": 1},
    }


@pytest.fixture
def little_memory(monkeypatch):
    """A function after whose call only so many sequences fit into memory."""

    def limit(sequences):
        loss = micro_batch.next_token_loss

        def next_token_loss(logits, targets):
            if len(targets) > sequences:
                raise RuntimeError(CPU)
            return loss(logits, targets)

        monkeypatch.setattr(micro_batch, "next_token_loss", next_token_loss)

    return limit


def trained(config, tmp_path, **train):
    """The saved micro batch size and the digests of the last checkpoint."""
    config = {**config, "train": {**config["train"], **train}}
    run = gptmini.train(config, resume=train.get("resume_run", False), quiet=True).run_dir
    (step,) = (run / "checkpoints").glob("step-00000004")
    saved = yaml.safe_load((run / "config.yaml").read_text())["train"]["micro_batch_size"]
    return (
        saved,
        (step / "model.safetensors").read_bytes(),
        (step / "training/optimizer.safetensors").read_bytes(),
    )


@pytest.mark.parametrize(
    ("fits", "found", "optimizer"), [(12, 12, "adamw"), (11, 6, "muon"), (4, 3, "adamw"), (1, 1, "muon")]
)
def test_auto_halves_until_a_step_fits_and_trains_the_same_bits(
    config, tmp_path, little_memory, fits, found, optimizer
):
    config["optim"] = {"optimizer": optimizer}
    little_memory(fits)
    automatic = trained(config, tmp_path)
    assert automatic[0] == found
    assert automatic == trained(config, tmp_path, micro_batch_size=found, out_dir=str(tmp_path / "given"))


def test_a_resumed_run_keeps_the_size_that_was_found(config, tmp_path, little_memory, capsys):
    little_memory(4)
    whole = trained(config, tmp_path)
    half = {**config, "train": {**config["train"], "out_dir": str(tmp_path / "half")}}
    gptmini.train({**half, "train": {**half["train"], "max_steps": 2, "checkpoint_interval": 2}}, quiet=True)
    little_memory(1)  # now less would fit
    gptmini.train(half, resume=True)
    assert "resumed, but not bit for bit, because train.max_steps was 2" in capsys.readouterr().out
    saved = yaml.safe_load((tmp_path / "half" / "config.yaml").read_text())["train"]["micro_batch_size"]
    assert saved == whole[0] == 3


def test_a_size_that_was_found_for_another_batch_is_found_anew(config, tmp_path, little_memory):
    little_memory(4)
    assert trained(config, tmp_path)[0] == 3
    changed = {**config, "train": {**config["train"], "batch_size": 8, "max_steps": 5}}
    gptmini.train(changed, resume=True, quiet=True)
    assert gptmini.load_config(tmp_path / "run/config.yaml").train.micro_batch_size == 4


def test_the_dry_run_before_some_minutes_more_finds_a_size_too(config, tmp_path, little_memory, monkeypatch):
    little_memory(4)
    trained(config, tmp_path)
    sizes = []
    real = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self: sizes.append(self.micro_batch_size) or real(self))
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["train", str(path), "--resume", "--minutes", "0.0001", "--quiet"]) == 0
    assert set(sizes) == {3}


def test_where_nothing_fits_auto_says_what_to_lower(config, little_memory):
    little_memory(0)
    with pytest.raises(OutOfMemoryError, match=r"with one sequence per forward pass: lower model\.n_embd"):
        gptmini.train(config)


def test_auto_is_refused_where_a_rank_would_leave_the_others_waiting(config, monkeypatch):
    class Sharded:
        sharded = True

    trainer = Trainer.__new__(Trainer)
    trainer.config, trainer.distributed = Config.model_validate(config), Sharded()
    with pytest.raises(UserError, match=r"auto does not go with runtime\.parallel = fsdp"):
        micro_batch.fit_micro_batch_size(trainer)


def test_a_run_that_the_machine_cannot_hold_is_refused_before_it_begins(config, monkeypatch):
    config["train"]["micro_batch_size"] = None
    monkeypatch.setattr(estimate, "available_bytes", lambda at_all=False: 1 << 30)
    model = GPTConfig(vocab_size=257, n_layer=1, n_head=2, n_embd=16, context_length=16)

    def check(**train):
        config["train"] |= train
        check_memory(Config.model_validate(config), model, "fp32", 1, 1)

    check()
    with pytest.raises(
        OutOfMemoryError, match=r"GiB needed, 1\.00 GiB in all\): lower train\.micro_batch_size"
    ):
        check(batch_size=1_000_000)
    check(micro_batch_size="auto")  # one sequence fits
    assert fitting_micro_batch_size(Config.model_validate(config), model, "fp32", 1) in range(1000, 100_000)
    large = model.model_copy(update={"n_embd": 20_000})
    with pytest.raises(OutOfMemoryError, match=r"in all\): lower model\.n_embd"):
        check_memory(Config.model_validate(config), large, "fp32", 1, 1)


def test_a_first_step_without_memory_leaves_a_folder_that_can_be_begun_anew(
    config, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))

    def train_step(trainer):
        raise RuntimeError(CPU)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        assert main(["train", str(path), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("gptmini: out of memory (111.76 GiB asked for")
    assert "lower train.micro_batch_size (auto finds one that fits)" in error
    assert error.count("\n") == 1
    assert main(["train", str(path), "--quiet", "--train.micro-batch-size", "2"]) == 0
    assert CheckpointStore(tmp_path / "run", keep=1).steps() == [4]


@pytest.mark.parametrize(
    "generate",
    [
        lambda model, _: gptmini.generate(model, torch.zeros(1, 2, dtype=torch.int64), max_new_tokens=2),
        lambda model, tokenizer: next(gptmini.generate_text(model, tokenizer, "To be")),
        lambda model, tokenizer: next(gptmini.stream(model, tokenizer, "To be")),
    ],
    ids=["generate", "generate_text", "stream"],
)
def test_generating_in_python_runs_out_of_memory_in_one_line(generate, monkeypatch):
    model = gptmini.GPT(GPTConfig(vocab_size=257, n_layer=1, n_head=1, n_embd=4, context_length=8))

    def hidden_states(*args, **options):
        raise RuntimeError(CPU)

    monkeypatch.setattr(model, "hidden_states", hidden_states)
    with pytest.raises(OutOfMemoryError, match=r"111\.76 GiB asked for.*: give fewer texts at once"):
        generate(model, gptmini.Tokenizer.train("", "bytes"))


def test_a_size_out_of_bounds_is_refused(capsys):
    for key, bound in {
        "train.batch-size": "1,000,000",
        "model.n-embd": "131,072",
        "tokenizer.vocab-size": "1,000,000",
    }.items():
        assert main(["plan", f"--{key}", "1000000000000"]) == 2
        assert f"of at most {bound}" in capsys.readouterr().err


def test_available_memory_is_no_more_than_there_is_at_all():
    now, at_all = available_bytes(), available_bytes(at_all=True)
    assert (now is None and at_all is None) or 0 <= now <= at_all
