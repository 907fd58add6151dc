import shutil
from pathlib import Path

import pytest
import yaml

from gptmini.checkpoint.store import CheckpointStore
from gptmini.cli import main as cli
from gptmini.config import load_config
from gptmini.planning import autoconfig
from gptmini.planning.autoconfig import SIZES, choose_size, choose_steps, choose_values

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom.\n"


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A text, and a machine on which every step takes a second and evaluations take none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(autoconfig, "_tokens_per_second", lambda size, runtime: 1e9 / size.parameters)
    monkeypatch.setattr(autoconfig, "dry_run", lambda *_: (1.0, 0.0))
    Path("my text.txt").write_text(TEXT * 100)
    return "my text.txt"


def train(*args: str) -> int:
    return cli.main(["train", *args, "--runtime.threads", "1", "--runtime.device", "cpu"])


def weights(run: str) -> bytes:
    return (sorted(Path(run, "checkpoints").iterdir())[-1] / "model.safetensors").read_bytes()


def test_a_run_without_a_config_is_repeated_by_the_yaml_it_prints(text, capsys):
    assert train("--data.corpus", text, "--minutes", "0.2") == 0
    out = capsys.readouterr().out
    printed = out.partition("\n\n")[2].partition("\n\n")[0]
    assert load_config("runs/my_text/config.yaml").model_dump() == load_config_text(printed)
    assert "steps long" not in out
    assert 8 <= yaml.safe_load(printed)["train"]["max_steps"] <= 12
    Path("again.yaml").write_text(printed)
    assert train("again.yaml", "--train.out-dir", "again", "--quiet") == 0
    assert weights("again") == weights("runs/my_text")


def load_config_text(text: str) -> dict:
    Path("printed.yaml").write_text(text)
    return load_config("printed.yaml").model_dump()


def test_a_resumed_run_keeps_the_steps_it_began_with(text, capsys, monkeypatch):
    assert train("--data.corpus", text, "--minutes", "0.2", "--quiet") == 0
    begun = Path("runs/my_text/config.yaml").read_text()
    finished = weights("runs/my_text")
    for step in sorted(Path("runs/my_text/checkpoints").iterdir())[1:]:
        for file in sorted(step.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        step.rmdir()
    monkeypatch.setattr(autoconfig, "dry_run", lambda *_: (0.1, 0.0))  # ten times as fast now
    assert train("--data.corpus", text, "--resume") == 0
    assert "resumed at step" in capsys.readouterr().out
    assert Path("runs/my_text/config.yaml").read_text() == begun
    assert weights("runs/my_text") == finished


SMALL = ["--model.n-layer", "1", "--model.n-head", "1", "--model.n-embd", "8", "--quiet"]


def last_step(run: str) -> int:
    return CheckpointStore(Path(run), keep=1).steps()[-1]


def test_a_finished_run_is_trained_for_some_minutes_more(text, capsys):
    assert train("--data.corpus", text, "--minutes", "0.0001", *SMALL) == 0
    assert last_step("runs/my_text") == 2
    assert train("--data.corpus", text, "--minutes", "0.2", "--resume") == 0
    out = capsys.readouterr().out
    assert "0.2 minutes more on cpu" in out
    assert "train.max_steps was 2 and is now " in out
    assert "it rises again" in out
    extended = load_config("runs/my_text/config.yaml").train
    assert 8 <= extended.max_steps == last_step("runs/my_text") <= 14
    assert extended.eval_interval > 1  # chosen anew: the run of two steps had 1
    # from here on it resumes as any other run
    shutil.copytree("runs/my_text", "copy")
    shutil.rmtree(CheckpointStore(Path("runs/my_text"), keep=1).path(extended.max_steps))
    assert train("--data.corpus", text, "--resume", "--quiet") == 0
    assert weights("runs/my_text") == weights("copy")


def test_however_few_minutes_there_are_something_is_learned(text):
    assert train("--data.corpus", text, "--minutes", "0.0001", *SMALL) == 0
    begun = weights("runs/my_text")
    assert train("--data.corpus", text, "--minutes", "0.0001", "--resume", "--quiet") == 0
    assert weights("runs/my_text") != begun


def test_a_run_with_a_config_goes_on_for_some_minutes_with_its_own_intervals(text, capsys):
    Path("my.yaml").write_text("model: {n_embd: 32}\ntrain: {max_steps: 2, eval_interval: 3, out_dir: run}\n")
    assert train("my.yaml", "--data.corpus", text, "--minutes", "0.1", "--resume") == 2
    assert "run has no checkpoint to continue" in capsys.readouterr().err
    assert train("my.yaml", "--data.corpus", text, "--quiet") == 0
    assert train("my.yaml", "--data.corpus", text, "--minutes", "0.1", "--resume", "--quiet") == 0
    extended = load_config("run/config.yaml").train
    assert extended.eval_interval == 3
    assert 5 <= extended.max_steps == last_step("run") <= 8


def test_minutes_after_a_run_without_a_checkpoint_choose_anew(text):
    assert train("--data.corpus", text, "--minutes", "0.1", *SMALL) == 0
    shutil.rmtree("runs/my_text/checkpoints")
    assert train("--data.corpus", text, "--minutes", "0.2", "--resume", *SMALL) == 0
    assert last_step("runs/my_text") >= 8


def test_what_the_user_gives_is_not_chosen(text):
    options = ["--train.max-steps", "2", "--model.n-embd", "32", "--tokenizer.kind", "bytes"]
    assert train("--data.corpus", text, *options, "--train.out-dir", "run", "--quiet") == 0
    config = load_config("run/config.yaml")
    assert (config.train.max_steps, config.model.n_embd, config.tokenizer.kind) == (2, 32, "bytes")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--minutes 1 --train.max-steps 5", "--minutes and --train.max-steps were both given"),
        ("my.yaml --minutes 1", "--minutes is for runs without a size: with a CONFIG.yaml"),
        ("--minutes 0", "--minutes = 0: needs a number above 0"),
        ("--minutes soon", "--minutes = 'soon': needs a number above 0"),
    ],
)
def test_minutes_that_make_no_sense_are_one_line(text, capsys, args, message):
    Path("my.yaml").write_text("train: {max_steps: 1}\n")
    assert train(*args.split(), "--data.corpus", text) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_used_folder_is_refused_before_anything_is_measured(text, capsys, monkeypatch):
    assert train("--data.corpus", text, "--minutes", "0.05", "--quiet") == 0
    monkeypatch.setattr(autoconfig, "_tokens_per_second", None)
    assert train("--data.corpus", text) == 2
    assert "runs/my_text: holds a run already" in capsys.readouterr().err


def test_a_faster_machine_more_time_and_more_text_give_a_larger_model():
    def size(text_bytes: int, seconds: float, speed: float) -> int:
        return SIZES.index(choose_size(text_bytes, seconds, lambda size: speed / size.parameters)[0])

    assert size(10**6, 300, 1e3) == 0
    assert size(10**6, 300, 1e10) < size(10**6, 600, 1e11) < size(10**8, 600, 1e13) < size(10**10, 6000, 1e14)
    assert size(10**5, 6000, 1e14) < size(10**6, 6000, 1e14) < size(10**9, 6000, 1e14) == len(SIZES) - 1


@pytest.mark.parametrize("text_bytes", [1, 300, 10**5, 10**7, 10**10, 10**13])
@pytest.mark.parametrize("tokens", [0, 10**5, 10**7, 10**12])
def test_whatever_is_chosen_is_a_valid_config(text_bytes, tokens):
    for size in SIZES:
        config = load_config(None, choose_values(size, tokens, text_bytes) | choose_steps(tokens // 10**4))
        assert config.train.eval_interval <= config.train.max_steps
        assert 0 < config.data.val_fraction * text_bytes <= 1.1e6


def test_the_dry_run_times_real_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT * 100)
    monkeypatch.setattr(autoconfig, "SIZES", SIZES[:1])
    assert train("--data.corpus", "text.txt", "--minutes", "0.01") == 0
    advice = "took all of the time, so the run is 2 steps long; continue it with --resume --minutes N"
    assert advice in capsys.readouterr().out
    assert CheckpointStore(Path("runs/text"), keep=1).latest()[0] is not None
