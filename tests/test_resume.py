"""Which folder a run takes, what a resume needs and compares, and how long it goes on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import gptmini
from gptmini.checkpoint.store import CheckpointStore
from gptmini.cli.main import main
from gptmini.config import Config, dump_config, load_config
from gptmini.distributed.context import DistributedContext
from gptmini.errors import UserError
from gptmini.training.initialize import build_model_and_data
from gptmini.training.log_files import read_metrics
from gptmini.training.run import train
from gptmini.training.runtime import start_runtime

SECTIONS = {
    "model": {"n_layer": 1, "n_head": 1, "n_embd": 8, "context_length": 8},
    "data": {"corpus": "text.txt"},
    "tokenizer": {"kind": "bytes"},
    "train": {"out_dir": "run", "max_steps": 4, "batch_size": 2, "eval_interval": 2, "log_interval": 1},
    "runtime": {"device": "cpu", "precision": "fp32", "threads": 1},
}
NEEDS_LINKS = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current directory, with a text in it."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The cat sat on the mat, and the mat lay still. " * 60, encoding="utf-8")
    return tmp_path


def config_with(**sections):
    return Config.model_validate({key: keys | sections.get(key, {}) for key, keys in SECTIONS.items()})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GPTMINI_CACHE_DIR", str(folder / "cache"))
        Path("text.txt").write_text("The cat sat on the mat. " * 60, encoding="utf-8")
        train(config_with(), quiet=True)
        gptmini.save("hub", *gptmini.load("run"))
    return folder


@pytest.fixture
def shared_run(finished, folder):
    """A copy of a finished run and of its model, in the current directory."""
    for name in ("run", "hub"):
        shutil.copytree(finished / name, folder / name)
    if sys.platform != "win32":
        Path("linked").symlink_to("run/checkpoints")


def files_of(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def steps_of(run):
    return CheckpointStore(Path(run), keep=1).steps()


def remove_step(run, step):
    shutil.rmtree(CheckpointStore(Path(run), keep=1).path(step))


# ---------------------------------------------------------------------------- which folder a run takes


@pytest.mark.parametrize("changes", [{"train": {"seed": 7}}, {"model": {"n_embd": 16}}])
def test_steps_without_a_config_are_another_runs(changes):
    train(config_with(), quiet=True)
    for file in ("config.yaml", "metrics.jsonl", "samples.jsonl", ".lock"):
        Path("run", file).unlink()
    before = files_of("run")
    with pytest.raises(UserError, match=r"run: has no config\.yaml, but checkpoints/ holds steps of another"):
        train(config_with(**changes), quiet=True)
    assert files_of("run") == before
    train(config_with(train={"max_steps": 5}), resume=True, quiet=True)
    assert steps_of("run")[-1] == 5


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_file_of_the_user_is_named_and_left_alone(name, resume):
    Path("run").mkdir()
    Path("run", name).write_text('{"step": 1, "accuracy": 0.5}\n')
    before = files_of("run")
    with pytest.raises(UserError, match=rf"run: holds a {name}, but no run; rename it, or choose another"):
        train(config_with(), resume=resume, quiet=True)
    assert files_of("run") == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_config_of_the_user_is_named_and_left_alone(resume):
    Path("run").mkdir()
    Path("run/config.yaml").write_text(dump_config(config_with()) + "# mine\n")
    before = files_of("run")
    with pytest.raises(UserError, match=r"run: holds a config\.yaml that no run of this version wrote"):
        train(load_config("run/config.yaml"), resume=resume, quiet=True)
    assert files_of("run") == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "samples.jsonl"])
def test_a_pipe_in_place_of_a_file_is_one_line(name, capsys):
    train(config_with(), quiet=True)
    Path("run", name).unlink()
    os.mkfifo(Path("run", name))
    with pytest.raises(UserError, match=rf"its {name} is not a regular file; remove it"):
        train(config_with(train={"max_steps": 5}), resume=True, quiet=True)
    if name != "config.yaml":
        assert main(["report", "run"]) in (2, 4)


@pytest.mark.parametrize("stray", ["step-00000004", "step-00000006", None])
def test_a_file_in_place_of_a_steps_folder_is_named_before_any_step(stray, capsys):
    train(config_with(), quiet=True)
    remove_step("run", 4)
    checkpoints = Path("run/checkpoints")
    if stray is None:
        shutil.rmtree(checkpoints)
    path = checkpoints / stray if stray else checkpoints
    path.touch()
    before = files_of("run")
    Path("c.yaml").write_text(dump_config(config_with(train={"max_steps": 8})), encoding="utf-8")
    assert main(["train", "c.yaml", "--resume"]) == 2
    said = capsys.readouterr().err
    assert f"train.out_dir = run: its {path.relative_to('run')} is not a folder; remove it" in said
    assert files_of("run") == before
    path.unlink()
    assert main(["train", "c.yaml", "--resume", "--quiet"]) == 0


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("run/checkpoints/step-00000002", "is a checkpoint"),
        ("run/checkpoints/step-00000002/training", "lies in the checkpoints of a run"),
        ("run/checkpoints/another", "lies in the checkpoints of a run"),
        ("run/checkpoints", "lies in the checkpoints of a run"),
        pytest.param("linked/another", "lies in the checkpoints of a run", marks=NEEDS_LINKS),
        ("hub", "is a checkpoint"),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_does_not_start_among_checkpoints(shared_run, place, message, resume):
    before = files_of(".")
    with pytest.raises(UserError, match=f"^train.out_dir = {place}: {message}; choose another folder$"):
        train(config_with(train={"out_dir": place}), resume=resume, quiet=True)
    assert files_of(".") == before


@pytest.mark.parametrize("place", ["checkpoints/mine", "run/mine", "run/checkpoints/../../mine"])
def test_a_run_may_start_beside_another(shared_run, place):
    train(config_with(train={"out_dir": place, "max_steps": 1}), quiet=True)
    assert steps_of(place) == [1]


def test_a_run_that_failed_before_its_first_checkpoint_may_be_begun_anew(monkeypatch):
    def fail(self):
        if self.progress.step == 2:
            raise MemoryError
        return real(self)

    from gptmini.training.trainer import Trainer

    real = Trainer.train_step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", fail)
        with pytest.raises(MemoryError):
            train(config_with(train={"batch_size": 4}), quiet=True)
    failed = Path("run/metrics.jsonl").read_bytes()
    assert [line["step"] for line in read_metrics(Path("run/metrics.jsonl"))] == [1]
    train(config_with(), quiet=True)
    train(config_with(train={"out_dir": "other"}), quiet=True)
    weights = [Path(run, "checkpoints/step-00000004/model.safetensors") for run in ("run", "other")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert load_config("run/config.yaml").train.batch_size == 2
    assert Path("run/metrics-1.jsonl").read_bytes() == failed  # nothing is lost


# ---------------------------------------------------------------------------------- what is compared


def test_a_finished_run_trains_nothing_and_so_compares_nothing(capsys):
    train(config_with(), quiet=True)
    train(config_with(runtime={"threads": 2}), resume=True)
    out = capsys.readouterr().out
    assert "not bit for bit" not in out
    assert "ended at step 4: nothing is trained; a larger train.max_steps (or early_stop_patience)" in out


def test_a_run_out_of_patience_says_which_key_continues_it(capsys):
    worse = {"optim": {"lr": 5.0}, "train": {"eval_interval": 1, "early_stop_patience": 1, "max_steps": 50}}
    config = Config.model_validate({**SECTIONS, **worse, "train": SECTIONS["train"] | worse["train"]})
    train(config, quiet=True)
    train(config, resume=True)
    assert "nothing is trained; a larger train.max_steps (or early_stop_patience)" in capsys.readouterr().out


def test_other_matrix_kernels_are_named_at_a_resume():
    train(config_with(), quiet=True)
    remove_step("run", 4)
    variables = {"PYTHONPATH": str(Path(__file__).parent.parent), "MKL_CBWR": "COMPATIBLE"}
    command = [sys.executable, "-m", "gptmini", "train", "run/config.yaml", "--resume"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | variables)
    first, last = (kernels_of_step(step) for step in (2, 4))
    if first == last:
        pytest.skip("MKL_CBWR changes nothing here: no MKL")
    assert "resumed, but not bit for bit, because the matrix kernels differ\n" in done.stdout


def kernels_of_step(step):
    state = Path(f"run/checkpoints/step-{step:08d}/training/state.json")
    return json.loads(state.read_text())["kernels"]


def test_a_checkpoint_without_a_digest_of_kernels_is_compared_by_what_it_has(monkeypatch):
    from gptmini.training import resume

    config = config_with()
    train(config, quiet=True)
    state = CheckpointStore(Path("run"), keep=1).latest()[0].state
    runtime = start_runtime(config.runtime)
    data = build_model_and_data(config, runtime, quiet=True)[1]
    assert state.kernels == runtime.kernels
    older = state.model_copy(update={"kernels": None})
    assert resume.check_resumable(older, config, data, runtime) is None
    other = state.model_copy(update={"kernels": "0" * 64})
    assert "matrix kernels differ" in resume.check_resumable(other, config, data, runtime)


def test_a_flipped_byte_of_config_yaml_that_decides_bits_is_named(capsys):
    train(config_with(), quiet=True)
    remove_step("run", 4)
    values = yaml.safe_load(Path("run/config.yaml").read_text())
    values["optim"]["lr"] = 0.003
    Path("run/config.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", "run/config.yaml", "--resume"]) == 0
    out = capsys.readouterr().out
    assert "not bit for bit, because optim.lr was 0.001 and is now 0.003" in out


# ------------------------------------------------------------------------------- what a resume needs


def weights_of(run, step=4):
    return Path(run, f"checkpoints/step-{step:08d}/model.safetensors").read_bytes()


def test_a_fine_tune_resumes_without_the_weights_that_it_started_from():
    train(config_with(train={"out_dir": "source"}), quiet=True)
    config = config_with(tokenizer={"kind": "bytes"}, train={"init_from": "source"})
    train(config, quiet=True)
    finished = weights_of("run")
    remove_step("run", 4)
    shutil.rmtree("source")
    train(load_config("run/config.yaml"), resume=True, quiet=True)
    assert weights_of("run") == finished
    with pytest.raises(UserError, match=r"model\.n_layer = 2, but the run was started with 1"):
        train(config_with(model={"n_layer": 2}, train={"init_from": "source"}), resume=True, quiet=True)
    with pytest.raises(UserError, match="source: no such folder"):  # as at the start: another tokenizer
        train(config_with(tokenizer={"kind": "chars"}, train={"init_from": "source"}), resume=True)


def test_ranks_wait_equally_often_where_only_some_machines_hold_the_checkpoint(monkeypatch):
    train(config_with(train={"out_dir": "source"}), quiet=True)
    config, waits = config_with(train={"init_from": "source"}), []
    real = DistributedContext.local_main_first
    monkeypatch.setattr(DistributedContext, "local_main_first", lambda self: waits.append(self) or real(self))
    build_model_and_data(config, start_runtime(config.runtime), quiet=True)
    alone = len(waits)
    saved = gptmini.Tokenizer.load("source/checkpoints/step-00000004")
    build_model_and_data(config, start_runtime(config.runtime), quiet=True, saved_tokenizer=saved)
    assert len(waits) == 2 * alone > 0


def test_a_run_resumes_without_the_folder_of_its_tokenizer(monkeypatch):
    gptmini.Tokenizer.train([Path("text.txt").read_text()], "bpe", vocab_size=270).save("tokenizer")
    config = config_with(tokenizer={"kind": "bpe", "folder": "tokenizer"})
    train(config, quiet=True)
    finished = weights_of("run")
    remove_step("run", 4)
    shutil.rmtree("tokenizer")
    shutil.rmtree(os.environ["GPTMINI_CACHE_DIR"])
    train(config, resume=True, quiet=True)
    assert weights_of("run") == finished
    with pytest.raises(UserError, match="other"):
        train(config_with(tokenizer={"kind": "bpe", "folder": "other"}), resume=True, quiet=True)


def test_a_damaged_tokenizer_of_the_newest_checkpoint_is_taken_from_an_older_one(capsys):
    train(config_with(train={"out_dir": "source"}), quiet=True)
    train(config_with(train={"init_from": "source"}), quiet=True)
    finished = weights_of("run")
    shutil.rmtree("source")
    file = Path("run/checkpoints/step-00000004/tokenizer.json")
    file.write_bytes(file.read_bytes().replace(b'"a"', b'"\xc3\xa9"', 1))
    train(load_config("run/config.yaml"), resume=True)
    assert "skipped" in capsys.readouterr().out
    assert weights_of("run") == finished
