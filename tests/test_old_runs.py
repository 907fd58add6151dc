"""Run folders that an earlier version wrote: they load, and resume to what that version reached."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gptmini
from gptmini.checkpoint.state import read_state
from gptmini.cli.main import main

OLD = Path(__file__).parent / "data"  # README.md there says how they were written
RUNS = ["runs_v1/adamw_chars", "runs_v1/muon_bpe", "runs_v2/muon_chars"]
TIMES = ("tokens_per_second", "elapsed_seconds")


@pytest.fixture
def old(request, tmp_path, monkeypatch):
    """Where an old run lies, and its name in a copy of that folder, in which the test works."""
    folder, _, name = request.param.partition("/")
    shutil.copytree(OLD / folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTMINI_CACHE_DIR", str(tmp_path / "cache"))
    return OLD / folder, name


@pytest.mark.parametrize("old", RUNS, indirect=True)
def test_an_old_run_resumes_to_the_bits_of_the_version_that_wrote_it(old):
    folder, name = old
    assert main(["train", f"{name}/config.yaml", "--resume", "--quiet"]) == 0

    finished, step = folder / f"{name}-finished", Path(name, "checkpoints", "step-00000008")
    written, now = read_state(folder / name / "checkpoints/step-00000004"), read_state(step)
    same_kernels = now.environment == written.environment and written.kernels in (None, now.kernels)
    for ours, theirs in (
        (step / "model.safetensors", finished / "model.safetensors"),
        (step / "training" / "optimizer.safetensors", finished / "optimizer.safetensors"),
    ):
        tensors, expected = load_file(ours), load_file(theirs)
        assert tensors.keys() == expected.keys()
        for key, value in expected.items():
            if same_kernels:
                assert torch.equal(tensors[key], value), key
            else:  # another processor adds in another order
                torch.testing.assert_close(tensors[key], value, rtol=1e-3, atol=1e-4)
    lines = [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
    for line, old_line in zip(lines, (finished / "metrics.jsonl").read_text().splitlines(), strict=True):
        expected_line = json.loads(old_line)
        for key in expected_line.keys() - set(TIMES):
            if isinstance(expected_line[key], float) and not same_kernels:
                assert line[key] == pytest.approx(expected_line[key], rel=1e-3), key
            elif key != "crc32" or same_kernels:
                assert line[key] == expected_line[key], key


@pytest.mark.parametrize("old", RUNS, indirect=True)
def test_an_old_run_verifies_loads_and_evaluates_to_the_loss_that_it_had(old, tmp_path, capsys):
    folder, name = old
    cached = {path: path.read_bytes() for path in tmp_path.glob("cache/tokens/*/tokens/*")}
    assert main(["verify", name]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert f"{name}/checkpoints/step-00000004: whole" in said.out
    assert ("prepared tokens: whole" in said.out) == bool(cached)

    model, tokenizer = gptmini.load(name)
    assert tokenizer.decode(tokenizer.encode("a dog")) == "a dog"
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    (loss,) = (line["loss"] for line in lines if line["split"] == "val" and line["step"] == 4)
    text = (tmp_path / "corpus.txt").read_text()
    assert gptmini.evaluate(model, tokenizer, text).loss == pytest.approx(loss, rel=0.1)  # on all of the text
    if cached:  # the tokens of runs_v1 were not kept: its evaluations were of their first 200
        assert main(["evaluate", name]) == 0
        assert f"loss           {loss:.4f} nats per token" in capsys.readouterr().out
        # they are used as they are
        assert cached == {path: path.read_bytes() for path in tmp_path.glob("cache/tokens/*/tokens/*")}
