"""The loop on a small corpus: exact resume, golden losses, best and latest, early stop, bad input."""

import json
import math
import os
import random
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import gptmini
from gptmini.checkpoint.store import CheckpointStore
from gptmini.config import Config, dump_config
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import DivergedError, InUseError, Stopped, UserError
from gptmini.training import trainer as trainer_module
from gptmini.training.initialize import build_model_and_data
from gptmini.training.log_files import read_metrics
from gptmini.training.metrics import Metrics
from gptmini.training.nonfinite import NonFiniteLatch
from gptmini.training.optim import optimizer_tensors
from gptmini.training.resume import check_resumable
from gptmini.training.run import TrainResult, train
from gptmini.training.runtime import start_runtime
from gptmini.training.trainer import Trainer

GOLDEN = Path(__file__).parent / "golden" / "losses.json"


@pytest.fixture
def corpus(tmp_path):
    """A text with some structure: 200 sentences of a tiny grammar, the same on every machine."""
    chooser = random.Random(0)
    words = [["the cat", "a dog", "my bird"], ["sees", "likes", "hears"], ["the sea", "a tree", "old songs"]]
    sentences = [" ".join(chooser.choice(part) for part in words) + ".\n" for _ in range(200)]
    path = tmp_path / "corpus.txt"
    path.write_text("".join(sentences), encoding="utf-8")
    return path


@pytest.fixture
def make_config(tmp_path, corpus):
    def make(name="run", model=None, optim=None, train=None, runtime=None, tokenizer=None):
        return Config.model_validate(
            {
                "model": {
                    "n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 8, "dropout": 0.1,
                    **(model or {}),
                },
                "data": {"corpus": str(corpus)},
                "tokenizer": tokenizer or {"kind": "chars"},
                "optim": {"warmup_steps": 2, **(optim or {})},
                "train": {
                    "out_dir": str(tmp_path / name), "max_steps": 6, "batch_size": 4, "eval_interval": 3,
                    "log_interval": 1, "eval_tokens": 100, **(train or {}),
                },
                "runtime": {"device": "cpu", "precision": "fp32", "threads": 1, **(runtime or {})},
            }
        )  # fmt: skip

    return make


def files_of(config):
    """The bytes of every file of a run."""
    return {path: path.read_bytes() for path in Path(config.train.out_dir).rglob("*") if path.is_file()}


def final_state(config):
    """Weights, optimizer state and metrics of a run, without the times."""
    checkpoint, _ = CheckpointStore(Path(config.train.out_dir), keep=1).latest()
    lines = [
        {k: v for k, v in line.items() if k not in ("elapsed_seconds", "tokens_per_second")}
        for line in read_metrics(Path(config.train.out_dir) / "metrics.jsonl")
    ]
    return checkpoint, lines


def assert_same_end(a, b):
    (left, left_lines), (right, right_lines) = final_state(a), final_state(b)
    assert left.step == right.step
    for ours, theirs in ((left.model, right.model), (left.optimizer, right.optimizer)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert left_lines == right_lines


def stop_after(step, monkeypatch):
    """Make SIGTERM arrive while the given step is being taken."""
    original = Trainer.train_step

    def train_step(self):
        if self.progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    monkeypatch.setattr(Trainer, "train_step", train_step)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_three_steps_and_three_more_equal_six_bit_for_bit(
    make_config, monkeypatch, optimizer, micro_batch_size
):
    options = {"optim": {"optimizer": optimizer}, "train": {"micro_batch_size": micro_batch_size}}
    whole, halves = make_config("whole", **options), make_config("halves", **options)
    train(whole, quiet=True)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(Stopped, match="stopped by SIGTERM after step 3"):
            train(halves, quiet=True)
    train(halves, resume=True, quiet=True)
    assert_same_end(whole, halves)


def test_evaluating_sampling_and_saving_more_often_changes_no_bit(make_config):
    plain = make_config("plain", train={"eval_interval": 6})
    busy = make_config(
        "busy", train={"eval_interval": 1, "sample_interval": 2, "checkpoint_interval": 1, "log_interval": 3}
    )
    train(plain, quiet=True)
    train(busy, quiet=True)
    (a, _), (b, _) = final_state(plain), final_state(busy)
    assert all(torch.equal(a.model[name], b.model[name]) for name in a.model)


def test_accumulating_micro_batches_is_the_same_training(make_config):
    whole = make_config("whole", model={"dropout": 0.0})
    parts = make_config("parts", model={"dropout": 0.0}, train={"micro_batch_size": 1})
    train(whole, quiet=True)
    train(parts, quiet=True)
    for a, b in zip(final_state(whole)[1], final_state(parts)[1], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)


def test_a_resume_below_the_steps_taken_is_refused_and_changes_no_file(make_config):
    train(make_config(), quiet=True)
    before = files_of(make_config())
    with pytest.raises(UserError, match=r"train\.max_steps = 3: the run is at step 6 already"):
        train(make_config(train={"max_steps": 3, "batch_size": 2}), resume=True, quiet=True)
    assert files_of(make_config()) == before


def test_a_finished_run_resumes_as_a_no_op(make_config):
    config = make_config()
    train(config, quiet=True)
    before = files_of(config)
    train(config, resume=True, quiet=True)
    assert files_of(config) == before


def test_golden_losses_of_twenty_steps(make_config):
    """The first 20 losses are pinned, so that no refactoring changes the training unnoticed.

    If this fails: did you mean to change the data order, initialisation, dropout seeding or optimizer? Then
    say so in the changelog and write the new losses into tests/golden/losses.json. Otherwise it is a bug.
    """
    losses = {}
    for optimizer in ("adamw", "muon"):
        config = make_config(optimizer, optim={"optimizer": optimizer}, train={"max_steps": 20})
        train(config, quiet=True)
        losses[optimizer] = [m["loss"] for m in final_state(config)[1] if m["split"] == "train"]
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for optimizer, expected in golden.items():
        # other processors round differently; a changed algorithm is off by far more
        assert losses[optimizer] == pytest.approx(expected, abs=2e-4), f"{optimizer}: {losses[optimizer]}"


def test_training_learns(make_config):
    config = make_config(train={"max_steps": 150, "eval_interval": 150}, optim={"lr": 1e-2})
    train(config, quiet=True)
    _, lines = final_state(config)
    assert lines[-1]["split"] == "val"
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]


def test_the_best_checkpoint_is_kept_beside_the_newest(make_config):
    config = make_config(
        optim={"lr": 3.0, "schedule": "constant", "warmup_steps": 0},  # so high that training gets worse
        train={"eval_interval": 1, "checkpoint_interval": 1, "keep_checkpoints": 1, "max_steps": 5},
    )
    train(config, quiet=True)
    store = CheckpointStore(Path(config.train.out_dir), keep=1)
    losses = {m["step"]: m["loss"] for m in final_state(config)[1] if m["split"] == "val"}
    best = min(losses, key=losses.get)
    assert best != 5
    assert store.steps() == [best, 5]
    assert store.best() == store.run_folder / "checkpoints" / f"step-{best:08d}"


def test_patience_ends_the_run_early_and_for_good(make_config):
    config = make_config(
        optim={"lr": 3.0, "schedule": "constant", "warmup_steps": 0},
        train={"eval_interval": 1, "early_stop_patience": 2, "max_steps": 50},
    )
    train(config, quiet=True)
    checkpoint, lines = final_state(config)
    assert checkpoint.step < 50
    assert checkpoint.state.evaluations_since_best == 2
    train(config, resume=True, quiet=True)
    assert final_state(config)[1] == lines


@pytest.mark.parametrize(("where", "value"), [("loss", math.nan), ("gradient", math.inf)])
def test_a_number_that_is_not_finite_stops_before_the_update(make_config, monkeypatch, where, value):
    config = make_config(train={"checkpoint_interval": 1, "max_steps": 6})
    original, calls = trainer_module.next_token_loss, []

    def spoiled(logits, targets):
        calls.append(1)
        loss = original(logits, targets)
        if len(calls) < 4:
            return loss
        if where == "loss":
            return loss * value
        logits.register_hook(lambda gradient: gradient * value)
        return loss

    monkeypatch.setattr(trainer_module, "next_token_loss", spoiled)
    with pytest.raises(DivergedError, match=r"diverged at step 4: .* windows at training tokens \d+, \d+"):
        train(config, quiet=True)
    checkpoint, _ = final_state(config)
    assert checkpoint.step == 3
    assert all(value.isfinite().all() for value in checkpoint.model.values())


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(make_config):
    train(make_config(), quiet=True)
    before = files_of(make_config())
    with pytest.raises(UserError, match=r"holds a run already; .*--resume"):
        train(make_config(optim={"lr": 0.5}, train={"max_steps": 7, "keep_checkpoints": 1}), quiet=True)
    assert files_of(make_config()) == before


def test_a_config_a_yaml_file_and_a_dict_train_the_same(make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config, on_disk, sections = (make_config(name) for name in ("config", "on_disk", "sections"))
    (tmp_path / "c.yaml").write_text(dump_config(on_disk))
    results = [
        train(given, quiet=True) for given in (config, "~/c.yaml", sections.model_dump(exclude_defaults=True))
    ]
    assert [result.run_dir.name for result in results] == ["config", "on_disk", "sections"]
    assert_same_end(config, on_disk)
    assert_same_end(config, sections)


def test_the_result_holds_the_losses_of_the_last_and_the_best_step(make_config):
    config = make_config(
        optim={"lr": 3.0, "schedule": "constant", "warmup_steps": 0},  # so high that training gets worse
        train={"eval_interval": 1},
    )
    result = train(config, quiet=True)
    losses = {line["step"]: line["loss"] for line in final_state(config)[1] if line["split"] == "val"}
    best = min(losses, key=losses.get)
    assert best != 6
    assert result == TrainResult(Path(config.train.out_dir), best, losses[best], losses[6], 6)
    assert train(config, resume=True, quiet=True) == result


def test_a_run_that_ends_without_an_evaluation_says_so(make_config, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(Stopped):
            train(make_config(), quiet=True)
    result = train(make_config(train={"max_steps": 1}), resume=True)
    assert (result.step, result.val_loss, result.best_step) == (1, None, None)
    assert "finished after step 1; best validation loss none yet; saved in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"max_step": 5}}, "config: unknown key train.max_step; did you mean train.max_steps?"),
        ({"train": {"max_steps": 0}}, "config: train.max_steps = 0: needs a whole number of at least 1"),
        ({"optim": None}, "config: optim = null: needs keys of its own"),
    ],
)
def test_a_mistake_in_a_dict_is_one_line(sections, message):
    with pytest.raises(UserError) as caught:
        train(sections)
    assert str(caught.value).startswith(message)


def test_training_works_in_a_thread_where_no_signal_can_be_caught(make_config):
    with ThreadPoolExecutor(max_workers=1) as pool:
        in_thread = pool.submit(train, make_config("thread"), quiet=True).result()
    assert in_thread.step == 6
    train(make_config("main"), quiet=True)
    assert_same_end(make_config("thread"), make_config("main"))


def test_a_second_process_in_the_run_folder_is_refused(make_config):
    config = make_config()
    train(config, quiet=True)
    with CheckpointStore(Path(config.train.out_dir), keep=1).lock(), pytest.raises(InUseError):
        train(config, resume=True, quiet=True)


def test_a_corpus_shorter_than_a_window_leaves_no_run_folder(make_config, corpus):
    corpus.write_text("short", encoding="utf-8")
    config = make_config()
    with pytest.raises(UserError, match="context_length"):
        train(config, quiet=True)
    assert not Path(config.train.out_dir).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"n_layer": 3}}, r"model\.n_layer = 3, but the run was started with 2"),
        ({"optim": {"optimizer": "muon"}}, r"optim\.optimizer = muon, but .* with adamw"),
        ({"tokenizer": {"kind": "bytes"}}, "tokenizer"),
    ],
)
def test_resuming_with_another_model_or_tokenizer_is_refused(make_config, change, message):
    train(make_config(), quiet=True)
    with pytest.raises(UserError, match=message):
        train(make_config(**change), resume=True, quiet=True)


def test_resuming_with_another_text_is_refused(make_config, corpus):
    train(make_config(), quiet=True)
    corpus.write_text(corpus.read_text(encoding="utf-8").replace("cat", "cow"), encoding="utf-8")
    with pytest.raises(UserError, match=r"data\.corpus = .* not what the run was started with"):
        train(make_config(tokenizer={"kind": "chars"}), resume=True, quiet=True)


def test_resuming_with_another_rate_says_that_bits_will_differ(make_config, capsys):
    train(make_config(), quiet=True)
    train(make_config(optim={"lr": 2e-3}, train={"max_steps": 8}), resume=True)
    output = capsys.readouterr().out
    assert "resumed, but not bit for bit, because" in output
    assert "optim.lr was 0.001 and is now 0.002" in output


def test_tokens_are_counted_with_the_batch_size_that_each_step_had(make_config, capsys):
    train(make_config(), quiet=True)
    twice = make_config(train={"batch_size": 8, "max_steps": 8})
    train(twice, resume=True)
    assert "64 tokens per step; 320 in all" in capsys.readouterr().out  # 6 steps of 4 x 8, 2 of 8 x 8
    checkpoint, lines = final_state(twice)
    assert [line["tokens"] for line in lines if line["step"] >= 6] == [192, 192, 256, 320, 320]
    assert checkpoint.state.tokens == 320


def metrics_of(trainer):
    """Metrics that write nothing."""
    return Metrics(trainer.store.run_folder, 0, 0, 0, quiet=True, enabled=False)


@pytest.mark.parametrize("attention", ["eager", "additive"])
def test_a_run_that_was_started_when_eager_was_called_masked_resumes_bit_for_bit(make_config, attention):
    trainer = a_trainer(make_config(model={"attention": attention}))
    trainer.progress.next_step(0)
    trainer.train_step()
    trainer.save(metrics_of(trainer))
    saved = trainer.store.latest()[0].state
    saved.config["model"]["attention"] = "masked"
    assert check_resumable(saved, trainer.config, trainer.data, trainer.runtime) is None
    fused = make_config(model={"attention": "sdpa"})
    note = check_resumable(saved, fused, trainer.data, trainer.runtime)
    assert note == "resumed, but not bit for bit, because model.attention was eager and is now sdpa"


def test_what_is_about_to_happen_is_printed_first(make_config, capsys):
    train(make_config())
    output = capsys.readouterr().out
    for fact in ("fp32", "parameters", "training tokens", "32 tokens per step", "epochs", "MiB of memory"):
        assert fact in output.split("step 1/6")[0]


def test_a_run_can_start_from_another_runs_weights_with_a_shorter_context(make_config):
    first = make_config("first")
    train(first, quiet=True)
    second = make_config(
        "second", model={"context_length": 4}, train={"init_from": first.train.out_dir, "max_steps": 1},
        optim={"lr": 1e-12},
    )  # fmt: skip
    train(second, quiet=True)
    best, _ = gptmini.load(first.train.out_dir)
    model, _ = gptmini.load(second.train.out_dir)
    torch.testing.assert_close(model.position_embedding.weight, best.position_embedding.weight[:4])
    torch.testing.assert_close(model.token_embedding.weight, best.token_embedding.weight)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"n_embd": 32}, r"model\.n_embd = 32, but train\.init_from"),
        ({"context_length": 9}, "positions for 8"),
    ],
)
def test_starting_from_a_model_of_another_shape_is_refused(make_config, model, message):
    first = make_config("first")
    train(first, quiet=True)
    with pytest.raises(UserError, match=message):
        train(make_config("second", model=model, train={"init_from": first.train.out_dir}), quiet=True)


def test_an_out_dir_that_cannot_be_made_is_a_user_error(make_config, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"train\.out_dir = .*file: is a file"):
        train(make_config("file"), quiet=True)
    with pytest.raises(UserError, match=r"train\.out_dir = .*file/run: the folder cannot be made"):
        train(make_config("file/run"), quiet=True)


def test_resuming_where_nothing_was_saved_starts_and_says_so(make_config, capsys):
    train(make_config(), resume=True)
    assert "no checkpoint to resume in" in capsys.readouterr().out


def test_samples_of_one_document_start_where_it_starts_in_the_run_and_from_the_checkpoint(
    make_config, corpus
):
    config = make_config(train={"sample_interval": 6})
    train(config, quiet=True)
    first = corpus.read_text(encoding="utf-8")[0]
    run_folder = Path(config.train.out_dir)
    (line,) = (run_folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["text"].startswith(first)
    corpus.unlink()
    model, tokenizer = gptmini.load(run_folder, device="cpu")
    assert tokenizer.decode([tokenizer.start_token]) == first
    for text in gptmini.generate_text(model, tokenizer, "", max_new_tokens=5, num_samples=5, seed=0):
        assert text.startswith(first)


def test_a_run_whose_tokenizer_has_no_end_of_text_prints_samples(make_config, corpus, tmp_path):
    file = json.loads(Tokenizer.train(corpus, vocab_size=280).files()["tokenizer.json"])
    del file["added_tokens"]
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    folder = {"kind": "bpe", "folder": str(tmp_path / "tokenizer")}
    config = make_config(tokenizer=folder, train={"sample_interval": 3})
    assert train(config, quiet=True).step == 6
    lines = (Path(config.train.out_dir) / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    starts = [json.loads(line)["text"][0] for line in lines]
    assert starts == 2 * [corpus.read_text(encoding="utf-8")[0]]


def test_a_sample_of_a_model_that_has_diverged_is_that(make_config):
    optim = {"lr": 1e20, "warmup_steps": 0}  # finite weights, but no finite logits
    with pytest.raises(DivergedError, match="diverged at step 1: logits that are not finite"):
        train(make_config(optim=optim, train={"sample_interval": 1, "eval_interval": 6}), quiet=True)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("interval", ["eval_interval", "sample_interval", "checkpoint_interval"])
def test_weights_that_an_update_has_spoiled_are_neither_evaluated_nor_sampled_nor_saved(
    make_config, optimizer, interval
):
    intervals = {"eval_interval": 6, "sample_interval": None, "checkpoint_interval": None, interval: 2}
    spoil = {"optimizer": optimizer, "lr": 1e38, "muon_lr": 1e38, "warmup_steps": 0}
    good = make_config(optim={"optimizer": optimizer}, train=intervals)
    spoiled = make_config(optim=spoil, train=intervals)
    with pytest.raises(DivergedError, match=r"diverged at step \d: .* and nothing had been saved yet"):
        train(spoiled, quiet=True)
    shutil.rmtree(good.train.out_dir)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(Stopped):
            train(good, quiet=True)
    with pytest.raises(DivergedError, match=r"diverged at step \d: .* and the checkpoint of step 1 is untou"):
        train(spoiled, resume=True, quiet=True)
    store = CheckpointStore(Path(good.train.out_dir), keep=1)
    assert store.steps() == [1]
    assert all(line["step"] < 3 for line in read_metrics(store.run_folder / "metrics.jsonl"))
    train(good, resume=True, quiet=True)


def a_trainer(config):
    """A trainer before its first step."""
    runtime = start_runtime(config.runtime)
    model, data = build_model_and_data(config, runtime, quiet=True)
    return Trainer(config, runtime, model, data, CheckpointStore(Path(config.train.out_dir), 1))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_until_the_device_is_read_a_failed_step_and_later_ones_change_nothing(
    make_config, monkeypatch, optimizer
):
    trainer = a_trainer(make_config(optim={"optimizer": optimizer}))
    progress = trainer.progress
    # as on a GPU between two log lines
    monkeypatch.setattr(NonFiniteLatch, "should_sync", lambda self, step: False)
    taken, real = [], trainer_module.next_token_loss

    def spoiled(logits, targets):
        taken.append(progress.step)
        return real(logits, targets) * (torch.nan if progress.step == 3 else 1.0)

    monkeypatch.setattr(trainer_module, "next_token_loss", spoiled)
    states = {}
    for progress.step in range(1, 6):
        trainer.train_step()
        tensors = [
            *trainer.model.parameters(),
            *optimizer_tensors(trainer.model, trainer.optimizers).values(),
        ]
        states[progress.step] = [tensor.detach().clone() for tensor in tensors]
    assert set(taken) == {1, 2, 3, 4, 5}
    assert not any(torch.equal(a, b) for a, b in zip(states[1], states[2], strict=True))
    for step in (3, 4, 5):
        assert all(torch.equal(a, b) for a, b in zip(states[2], states[step], strict=True))
    with pytest.raises(DivergedError, match="diverged at step 3: loss nan"):
        trainer.save(metrics_of(trainer))
    assert trainer.store.steps() == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_on_cuda_do_not_wait_for_the_device_between_log_lines(make_config, optimizer):
    config = make_config(
        optim={"optimizer": optimizer},
        train={"log_interval": 100, "max_steps": 100},
        runtime={"device": "cuda"},
    )
    trainer = a_trainer(config)
    for trainer.progress.step in (1, 2):
        trainer.train_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for trainer.progress.step in (3, 4, 5):
            trainer.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_steps_on_cuda_agree_with_the_cpu(make_config):
    losses = {}
    for device in ("cpu", "cuda"):
        config = make_config(device, model={"dropout": 0.0}, runtime={"device": device, "precision": "bf16"})
        trainer = a_trainer(config)
        trainer.progress.step = 1
        losses[device] = [float(trainer.train_step().loss) for _ in range(2)]
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=0.02)
