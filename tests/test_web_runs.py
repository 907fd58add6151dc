"""A run followed while it goes on, and gptmini runs."""

import json
import os
import shutil
from pathlib import Path

import httpx
import pytest
from web_server import running, train_run

import gptmini
from gptmini.checkpoint.folders import find_runs
from gptmini.cli.main import main
from gptmini.lock import is_locked, lock
from gptmini.training.log_files import MetricsLine, format_line
from gptmini.web.runs import MAX_TRAIN_LINES, LogTail, RunReader


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of it, at runs/tiny in a new current directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, "runs/tiny"))


def line(step, split="train", loss=2.0):
    values = dict.fromkeys(MetricsLine.model_fields, 1.0)
    return format_line({**values, "step": step, "split": split, "loss": loss, "tokens": step}) + "\n"


# ------------------------------------------------------------------------------------------ watching


def test_a_log_is_read_once_as_it_grows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = LogTail(path, MetricsLine)
    assert tail.read() == (False, [])
    path.write_text(line(1) + line(2)[:20])
    assert [values["step"] for values in tail.read()[1]] == [1]  # the torn line waits
    assert tail.read() == (False, [])
    path.write_text(line(1) + line(2))
    replaced, lines = tail.read()
    assert (replaced, [values["step"] for values in lines]) == (False, [2])


def test_a_log_that_is_replaced_is_read_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1) + line(2))
    tail = LogTail(path, MetricsLine)
    tail.read()
    (tmp_path / "new").write_text(line(1))
    os.replace(tmp_path / "new", path)  # as a resume does
    assert [tail.read()[0], tail.read()[0]] == [True, False]


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert LogTail(tmp_path / "metrics.jsonl", MetricsLine).read() == (False, [])


def test_a_run_is_told_once_and_again_after_it_was_replaced(run):
    reader = RunReader(run)
    events = dict(reader.events())
    assert [values["step"] for values in events["metrics"] if values["split"] == "val"] == [2, 4]
    assert [sample["step"] for sample in events["samples"]] == [2, 4]
    state = events["state"]
    assert (state["running"], state["step"], state["max_steps"]) == (False, 4, 4)
    assert state["checkpoints"] == [2, 4]
    assert state["best"]["loss"] == min(v["loss"] for v in events["metrics"] if v["split"] == "val")
    assert list(reader.events()) == []
    text = (run / "metrics.jsonl").read_bytes()
    (run / "new").write_bytes(text[: text.index(b"\n") + 1])
    os.replace(run / "new", run / "metrics.jsonl")
    names = [name for name, _ in reader.events()]
    assert names == ["restart", "metrics", "samples", "state"]


def test_of_a_long_past_some_train_lines_are_shown(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        "".join(line(step, "val" if step % 100 == 0 else "train") for step in range(1, 5001))
    )
    ((_, lines), _) = RunReader(tmp_path).events()
    train = [values["step"] for values in lines if values["split"] == "train"]
    assert MAX_TRAIN_LINES / 2 < len(train) <= MAX_TRAIN_LINES
    assert train[-1] == 4999
    assert sum(values["split"] == "val" for values in lines) == 50


def test_a_run_that_trains_is_running_and_has_a_time_left(run):
    with lock(run / ".lock", "run"):
        assert is_locked(run / ".lock")
        state = dict(RunReader(run).events())["state"]
        assert (state["running"], state["seconds_left"]) == (True, 0.0)
        assert main(["runs", "--delete", "tiny", "--yes"]) == 5
    assert not is_locked(run / ".lock")
    assert not is_locked(run / "none")
    assert not (run / "none").exists()


def test_lines_come_as_the_run_writes_them(run):
    with running(run) as url, httpx.stream("GET", f"{url}/api/watch?run=tiny", timeout=30) as answer:
        lines = answer.iter_lines()
        while next(lines) != "event: state":
            pass
        with open(run / "metrics.jsonl", "a") as log:
            log.write(line(9))
        while next(lines) != "event: metrics":
            pass
        (values,) = json.loads(next(lines).removeprefix("data: "))
        assert values["step"] == 9


def test_a_run_without_a_checkpoint_is_watched_and_not_played(run):
    new = run.parent / "new"
    new.mkdir()
    (new / "metrics.jsonl").write_text(line(1))
    (new / "config.yaml").write_text((run / "config.yaml").read_text())
    with running(new) as url:
        (info,) = httpx.get(f"{url}/api/models").json()
        assert (info["run"], info["checkpoints"], info["n_layer"]) == ("new", [], 2)
        assert "has saved no checkpoint yet" in info["sentence"]
        answer = httpx.post(f"{url}/api/next", json={"model": "new", "ids": [1]})
        assert answer.status_code == 400


# ------------------------------------------------------------------------------------------ gptmini runs


def test_the_runs_are_a_table(run, capsys):
    assert main(["runs"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "run"
    parameters = sum(parameter.numel() for parameter in gptmini.load(run)[0].parameters())
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    best = min(values["bits_per_byte"] for values in lines if values["split"] == "val")
    assert row.split()[:4] == ["tiny", "text.txt", f"{parameters:,}", f"{best:.4f}"]
    assert row.endswith(" MB")


def test_a_run_is_deleted_and_the_files_of_others_stay(run, capsys):
    (run / "mine.txt").write_text("mine")
    (run / "checkpoints" / "step-00000002" / "notes.md").write_text("mine")
    (run / "metrics-1.jsonl").write_text("")
    assert main(["runs", "--delete", "tiny", "--yes"]) == 0
    left = sorted(path for path in run.rglob("*") if path.is_file())
    assert left == [run / "checkpoints" / "step-00000002" / "notes.md", run / "mine.txt"]
    assert capsys.readouterr().out == f"{run}: deleted, but for what is no run's: {left[0]}, {left[1]}\n"


@pytest.mark.parametrize("damage", ["", "manifest.json"])
def test_nothing_of_a_run_stays(run, damage, capsys):
    if damage:
        (run / "checkpoints" / "step-00000002" / damage).write_text("{")
    assert main(["runs", "--delete", "tiny", "--yes"]) == 0
    assert not run.exists()
    assert main(["runs"]) == 2
    assert "runs: no runs there" in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "kept"), [("y", False), ("n", True), ("", True)])
def test_a_terminal_is_asked_first(run, answer, kept, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert main(["runs", "--delete", "tiny"]) == 0
    assert run.exists() == kept


def test_without_a_terminal_nothing_is_deleted(run, capsys):
    assert main(["runs", "--delete", "tiny"]) == 2
    assert "give --yes" in capsys.readouterr().err
    assert run.exists()


@pytest.mark.parametrize("name", ["none", "..", "../runs/tiny", "", "."])
def test_only_a_run_of_the_folder_is_deleted(run, name, capsys):
    assert main(["runs", f"--delete={name}", "--yes"]) == 2
    assert f"runs: no run is called {name}" in capsys.readouterr().err
    assert run.exists()


def test_a_link_to_a_run_is_not_followed(run, tmp_path, capsys):
    os.symlink(tmp_path / run, tmp_path / "runs" / "link")
    assert main(["runs", "--delete", "link", "--yes"]) == 2
    assert "runs/link: is a link" in capsys.readouterr().err
    assert run.exists()


@pytest.mark.parametrize(
    "command",
    ["generate runs/tin", "evaluate tiny", "verify runs/tin", "report runs/tin", "export x/y", "serve tiny"],
)
def test_where_a_checkpoint_is_not_found_the_runs_are_listed(run, command, capsys):
    assert main(command.split()) == 2
    assert "; runs there are: runs/tiny" in capsys.readouterr().err


def test_many_runs_are_not_all_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        (tmp_path / "runs" / f"run-{number:02}" / "checkpoints").mkdir(parents=True)
    assert len(find_runs(tmp_path / "runs")) == 12
    assert main(["generate", "nothing"]) == 2
    assert "runs/run-07 and 4 more" in capsys.readouterr().err
