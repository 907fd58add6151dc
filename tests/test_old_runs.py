"""Run folders that an earlier version wrote: they load, and resume to what that version reached."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gptmini.cli.main import main

OLD = Path(__file__).parent / "data" / "runs_v1"  # written with torch 2.13.0 on a CPU with AVX2, one thread
TIMES = ("tokens_per_second", "elapsed_seconds")


@pytest.mark.parametrize("name", ["adamw_chars", "muon_bpe"])
def test_an_old_run_resumes_to_the_bits_of_the_version_that_wrote_it(name, tmp_path, monkeypatch):
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTMINI_CACHE_DIR", str(tmp_path / "cache"))

    assert main(["train", f"{name}/config.yaml", "--resume", "--quiet"]) == 0

    finished, step = OLD / f"{name}-finished", Path(name, "checkpoints", "step-00000008")
    written = json.loads((OLD / name / "checkpoints/step-00000004/training/state.json").read_text())
    now = json.loads((step / "training" / "state.json").read_text())
    same_kernels = now["environment"] == written["environment"]
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
            if same_kernels or not isinstance(expected_line[key], float):
                assert line[key] == expected_line[key], key
            else:
                assert line[key] == pytest.approx(expected_line[key], rel=1e-3), key
