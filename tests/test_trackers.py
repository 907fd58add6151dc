"""TensorBoard's event files read back, and trackers that fail."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gptmini.config import Config
from gptmini.errors import UserError
from gptmini.training import trackers as trackers_module
from gptmini.training.metrics import read_metrics
from gptmini.training.trainer import train


@pytest.fixture
def make_config(tmp_path):
    (tmp_path / "text.txt").write_text("The cat sat on the mat, and the mat lay still. " * 60)

    def make(trackers, max_steps=4):
        return Config.model_validate(
            {
                "model": {"n_layer": 1, "n_head": 1, "n_embd": 8, "context_length": 8},
                "data": {"corpus": str(tmp_path / "text.txt")},
                "tokenizer": {"kind": "bytes"},
                "train": {
                    "out_dir": str(tmp_path / "run"), "max_steps": max_steps, "batch_size": 2,
                    "eval_interval": 2, "log_interval": 1, "trackers": trackers,
                },
                "runtime": {"device": "cpu", "threads": 1, "precision": "fp32"},
            }
        )  # fmt: skip

    return make


def lines_of(config):
    return list(read_metrics(Path(config.train.out_dir) / "metrics.jsonl"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboards_event_files_hold_the_figures_of_metrics_jsonl(make_config):
    train(make_config(["tensorboard"]), quiet=True)
    config = make_config(["tensorboard"], max_steps=6)
    train(config, resume=True, quiet=True)
    events = EventAccumulator(str(Path(config.train.out_dir) / "tensorboard")).Reload()
    for split in ("train", "val"):
        expected = [(m["step"], m["loss"]) for m in lines_of(config) if m["split"] == split]
        found = [(event.step, event.value) for event in events.Scalars(f"loss/{split}")]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-6)
    assert {"bits_per_byte/val", "lr/train", "grad_norm/train"} <= set(events.Tags()["scalars"])


class Broken:
    """A tracker that fails in one of its methods."""

    def __init__(self, where):
        self.where = where

    def log(self, step, values):
        if self.where == "log" and step == 2:
            raise ConnectionError("no\nroute")

    def close(self):
        if self.where == "close":
            raise SystemError("no disk")


@pytest.mark.parametrize("where", ["start", "log", "close"])
def test_a_tracker_that_fails_does_not_stop_the_run_and_is_told_of_once(
    make_config, monkeypatch, capsys, where
):
    def start(config, run_folder, first_step, quiet):
        if where == "start":
            raise OSError("no server")
        return Broken(where)

    monkeypatch.setitem(trackers_module.KINDS, "tensorboard", start)
    config = make_config(["tensorboard"])
    train(config)
    assert len([m for m in lines_of(config) if m["split"] == "train"]) == 4
    output = capsys.readouterr().out
    assert output.count("tensorboard failed and is left out from now on; the run continues (") == 1


def test_wandb_gets_the_figures_of_each_line(make_config, monkeypatch):
    """With a stand-in for the package, which needs an account and a network; a resumed run keeps its id."""
    logged, finished, ids = [], [], []

    def init(**options):
        assert options["name"] == "run"
        assert options["config"]["train"]["max_steps"] == 4 + 2 * len(ids)
        assert options["settings"] == {"silent": True}
        ids.append(options["id"])
        made = f"20261126_21000{len(ids)}-{options['id'] or 'k1-x'}"
        Path(options["dir"], "wandb", f"offline-run-{made}").mkdir(parents=True)
        return SimpleNamespace(
            log=lambda values, step: logged.append((step, values)), finish=lambda: finished.append(1)
        )

    stand_in = SimpleNamespace(init=init, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    config = make_config(["wandb"])
    train(config, quiet=True)
    assert [(step, values.get("loss/train")) for step, values in logged if "loss/train" in values] == [
        (m["step"], m["loss"]) for m in lines_of(config) if m["split"] == "train"
    ]
    assert finished == [1]
    train(make_config(["wandb"], max_steps=6), resume=True, quiet=True)
    train(make_config(["wandb"], max_steps=8), resume=True, quiet=True)
    assert ids == [None, "k1-x", "k1-x"]


def test_a_tracker_that_is_not_installed_is_one_line_before_anything_is_written(make_config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^train\.trackers = wandb: .* pip install wandb$"):
        train(make_config(["wandb"]), quiet=True)
    assert not Path(make_config([]).train.out_dir).exists()
