"""gptmini verify: what it says of a run, a step's folder and a GPT-2 directory, whole and damaged."""

import shutil
import sys
from pathlib import Path

import pytest

import gptmini
from gptmini.checkpoint.store import CheckpointStore, read_state
from gptmini.cli.main import main

OLD = Path(__file__).parent / "data" / "runs_v1"
RUN = "adamw_chars"
STEPS = [f"{RUN}/checkpoints/step-0000000{step}" for step in (4, 8)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 8 steps with two checkpoints, and its cache."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(OLD, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GPTMINI_CACHE_DIR", str(folder / "cache"))
        assert main(["train", f"{RUN}/config.yaml", "--resume", "--quiet"]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of it, in the working folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_whole_run_is_said_to_be_whole_and_left_as_it_is(run, tmp_path, capsys):
    before = contents(tmp_path)
    assert main(["verify", RUN]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    lines = dict(line.split(": ", 1) for line in said.out.splitlines())
    assert set(lines) == {
        *(f"{RUN}/{name}" for name in ("config.yaml", "metrics.jsonl", "samples.jsonl")),
        *STEPS,
        "prepared tokens",
    }
    assert all(found.startswith("whole") for found in lines.values())
    assert contents(tmp_path) == before
    assert main(["verify", STEPS[0]]) == 0
    assert capsys.readouterr().out.startswith(f"{STEPS[0]}: whole")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    [
        f"{STEPS[0]}/model.safetensors",
        f"{STEPS[0]}/tokenizer.json",
        f"{STEPS[1]}/training/optimizer.safetensors",
        f"{STEPS[1]}/training/state.json",
        f"{STEPS[1]}/manifest.json",
        f"{RUN}/metrics.jsonl",
        "cache/tokens/*/tokens/train.bin",
        "cache/tokens/*/tokens/val.bin",
        "cache/tokens/*/tokens/meta.json",
    ],
)
def test_what_is_damaged_is_named_and_the_rest_is_still_said_to_be_whole(run, tmp_path, capsys, name):
    (path,) = tmp_path.glob(name)
    flip(path)
    assert main(["verify", RUN]) == 4
    said = capsys.readouterr()
    damaged = [line for line in said.out.splitlines() if line.endswith(": not as it was written")]
    assert len(damaged) == 1
    assert len(said.out.splitlines()) == 6
    assert path.name in said.err
    assert len(said.err.splitlines()) == 1


def test_all_that_is_damaged_is_named(run, tmp_path, capsys):
    for step in STEPS:
        (tmp_path / step / "model.safetensors").unlink()
    (tmp_path / RUN / "config.yaml").write_text("train: [\n")
    assert main(["verify", RUN]) == 4
    said = capsys.readouterr().err
    assert all(f"{name}" in said for name in (*STEPS, "config.yaml"))


def test_the_tokens_of_a_run_are_checked_without_its_config_too(run, tmp_path, capsys):
    (tmp_path / RUN / "config.yaml").write_text("train: [\n")
    assert main(["verify", RUN]) == 4
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("prepared tokens: whole")
    assert said.err.count("config.yaml") == 1


def test_a_config_that_was_changed_and_a_text_that_is_gone_are_said_to_be(run, tmp_path, capsys):
    config = tmp_path / RUN / "config.yaml"
    config.write_text(config.read_text().replace("max_steps: 8", "max_steps: 9"))
    (tmp_path / "corpus.txt").unlink()
    assert main(["verify", RUN]) == 0
    said = capsys.readouterr().out
    assert f"{RUN}/config.yaml: readable; at step 8 train.max_steps was 8 and is now 9" in said
    assert "prepared tokens: not in the cache, or the text has changed" in said


def test_a_checkpoint_that_a_run_removes_meanwhile_is_passed_over(run, tmp_path, capsys, monkeypatch):
    store = CheckpointStore(tmp_path / RUN, keep=1)

    def prune_first(path):
        if path.name == "step-00000004":
            store.remove(store.path(4))
        return read_state(path)

    monkeypatch.setattr("gptmini.cli.verify.read_state", prune_first)
    assert main(["verify", RUN]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert STEPS[1] in said.out
    assert STEPS[0] not in said.out


def test_a_gpt2_directory_is_said_to_be_readable(run, tmp_path, capsys):
    model, tokenizer = gptmini.load(tmp_path / RUN)
    gptmini.save("hub", model, tokenizer)
    assert main(["verify", "hub"]) == 0
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert f"hub: readable, {numbers:,} parameters; no manifest.json" in capsys.readouterr().out
    (tmp_path / "hub" / "model.safetensors").write_bytes(b"half")
    assert main(["verify", "hub"]) == 4
    assert "hub/model.safetensors" in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(run, capsys):
    assert main(["verify", "nowhere"]) == 2
    Path("empty").mkdir()
    assert main(["verify", "empty"]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("strays", [["config.yaml"], ["config.yaml", "metrics.jsonl", "checkpoints/x"]])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_checkpoint_with_strays_of_a_run_is_no_run(run, tmp_path, capsys, strays, damage):
    step = tmp_path / STEPS[0]
    for name in strays:
        (step / name).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / RUN / "config.yaml", step / name)
    assert main(["verify", STEPS[0]]) == 0
    assert capsys.readouterr().out.startswith(f"{STEPS[0]}: whole")
    if damage == "flipped":
        flip(step / "model.safetensors")
    else:
        (step / "model.safetensors").unlink()
    assert main(["verify", STEPS[0]]) == 4
    assert "model.safetensors" in capsys.readouterr().err
    assert main(["generate", STEPS[0]]) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
@pytest.mark.parametrize("damage", [flip, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_snapshot_of_the_hub_beside_a_runs_files_is_no_run(run, tmp_path, capsys, damage, name):
    shutil.copytree(STEPS[0], "snapshot")
    for file in ("config.yaml", "metrics.jsonl"):
        shutil.copy(f"{RUN}/{file}", "snapshot")
    (tmp_path / "blob").write_bytes(Path("snapshot", name).read_bytes())
    Path("snapshot", name).unlink()
    Path("snapshot", name).symlink_to(tmp_path / "blob")
    assert main(["verify", "snapshot"]) == 0
    damage(tmp_path / "blob")
    assert main(["verify", "snapshot"]) == 4
    assert name in capsys.readouterr().err


def test_a_run_of_which_only_the_checkpoints_stay_lacks_its_config(run, tmp_path, capsys):
    for name in ("config.yaml", "metrics.jsonl", "samples.jsonl"):
        (tmp_path / RUN / name).unlink()
    assert main(["verify", RUN]) == 4
    said = capsys.readouterr()
    assert said.err == f"gptmini: {RUN}/config.yaml: is missing; train CONFIG.yaml --resume writes it anew\n"
    assert "prepared tokens: whole" in said.out


def test_a_config_file_given_for_its_run_is_said_to_be_a_file(run, capsys):
    assert main(["verify", f"{RUN}/config.yaml"]) == 2
    assert f"{RUN}/config.yaml: is a file; give the run's folder" in capsys.readouterr().err
