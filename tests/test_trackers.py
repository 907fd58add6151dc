"""TensorBoard's and wandb's own files read back, and trackers that fail."""

import json
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gptmini.config import Config
from gptmini.errors import UserError
from gptmini.training import trackers as trackers_module
from gptmini.training.log_files import read_metrics
from gptmini.training.run import train


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
def test_tensorboards_event_files_hold_the_numbers_of_metrics_jsonl(make_config):
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
def test_a_tracker_that_fails_does_not_stop_the_run_and_is_reported_once(
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


def wandb_records(run_dir):
    """Wandb's own files of a run, in order: protobuf records in LevelDB's log format.

    After 7 bytes of header come blocks of 32 KiB; a fragment has a checksum (4 bytes), its size (2), its kind
    (1: whole, 2: first, 3: middle, 4: last) and its bytes, and none begins in a block's last 6 bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(run_dir.glob("wandb/*run-*/*.wandb")):
        data, position, record = path.read_bytes(), 7, b""
        while position < len(data):
            if (left := 32768 - position % 32768) < 7:
                position += left
                continue
            size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
            record += data[position + 7 : position + 7 + size]
            position += 7 + size
            if kind in (1, 4):
                yield Record.FromString(record)
                record = b""


@pytest.mark.filterwarnings("ignore")  # wandb's own
def test_wandb_records_the_numbers_of_metrics_jsonl_in_one_run(make_config, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb"))

    train(make_config(["wandb"]), quiet=True)
    time.sleep(1)  # wandb names its folders by the second
    config = make_config(["wandb"], max_steps=6)
    train(config, resume=True, quiet=True)
    wandb.teardown()  # wait for its own process, which writes the files

    found, ids = {}, set()
    for record in wandb_records(Path(config.train.out_dir)):
        if record.WhichOneof("record_type") == "run":
            ids.add(record.run.run_id)
            assert record.run.display_name == "run"
            values = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            assert values["optim"]["lr"] == config.optim.lr
        if record.WhichOneof("record_type") == "history":
            values = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            found |= {(values["_step"], name): value for name, value in values.items() if name[0] != "_"}
    assert len(ids) == 1, "a resumed run keeps its id"
    names = ("loss", "bits_per_byte", "lr", "grad_norm", "tokens_per_second")
    assert found == {
        (line["step"], f"{name}/{line['split']}"): line[name]
        for line in lines_of(config)
        for name in names
        if line[name] is not None
    }


def test_a_tracker_that_is_not_installed_is_one_line_before_anything_is_written(make_config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^train\.trackers = wandb needs wandb: .* -m pip install wandb$"):
        train(make_config(["wandb"]), quiet=True)
    assert not Path(make_config([]).train.out_dir).exists()
