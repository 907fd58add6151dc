"""One byte of a run folder or its cache is flipped: a resume ends in the same bits, or names the damage."""

import os
import random
import shutil
from collections import Counter

import forked
import runs
import yaml

STEPS = 4
CONFIG = {
    "model": {"n_layer": 1, "n_head": 1, "n_embd": 2, "context_length": 4, "dropout": 0.1},
    "data": {"corpus": "../corpus.txt", "val_fraction": 0.2},
    "tokenizer": {"kind": "chars"},
    "optim": {"optimizer": "adamw", "lr": 1e-2, "warmup_steps": 2},
    "train": {
        "out_dir": "run",
        "max_steps": STEPS,
        "batch_size": 2,
        "eval_interval": 1,
        "eval_tokens": 60,
        "sample_interval": 2,
        "checkpoint_interval": 1,
        "keep_checkpoints": 9,
        "log_interval": 1,
    },
    "runtime": {"device": "cpu", "precision": "fp32", "threads": 1},
}
ARGS = ["train", "run/config.yaml", "--resume"]


def check_flipped_bytes(folder, stride=1, only=""):
    """One byte of a file is another: exit code 4, or the same weights and metrics, or the change is named.

    Exit code 2, and other weights, are right only where config.yaml says something else now, and other
    metrics alone, where it says so of what is reported or kept. Where a run is refused, no file has changed.
    `only` names the files to be tried. Returns how often there was which end.
    """
    rng, whole = random.Random(0), whole_run(folder)
    begun = stopped_run(folder, whole)
    paths = sorted(p for p in begun.rglob("*") if p.is_file() and only in str(p))
    places = [(path.relative_to(begun), at) for path in paths for at in range(path.stat().st_size)][::stride]
    ends, failures, workers = Counter(), [], os.cpu_count()
    for first in range(0, len(places), workers):  # as many at a time as there are processors
        started = []
        for number, (name, at) in enumerate(places[first : first + workers]):
            case = folder / f"case-{number}"
            shutil.rmtree(case, ignore_errors=True)
            shutil.copytree(begun, case)
            content = bytearray((case / name).read_bytes())
            content[at] ^= 1 << rng.randrange(7)  # so that text stays text
            (case / name).write_bytes(content)
            started.append((case, name, at, contents(case), forked.start(case, ARGS, cache)))
        for case, name, at, before, pid in started:
            code, output = forked.ended(case, pid)
            with forked.collected(failures, f"{name}, byte {at}: exit code {code}: {output}"):
                ends[end_of(case, name, before, whole, code, output)] += 1
    forked.report(failures)
    return ends


def contents(case):
    """The files that a run that is refused leaves as they are; its metrics may end at an earlier step."""
    files = [*(case / "cache").rglob("*"), *(case / "run" / "checkpoints").rglob("*")]
    return {f: f.read_bytes() for f in files if f.is_file()}


def whole_run(folder):
    """A run that nothing disturbed, with its cache."""
    whole = folder / "whole"
    whole.mkdir()
    (folder / "corpus.txt").write_text("a cab\nbad cab\n" * 20)
    (whole / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    code, output = forked.run(whole, ["train", "config.yaml"], cache)
    assert code == 0, output
    return whole


def stopped_run(folder, whole):
    """The same run as a crash after half of its steps leaves it: with the lines past its checkpoint."""
    begun = folder / "begun"
    shutil.copytree(whole, begun)
    (begun / "output.txt").unlink()
    for step in range(1, STEPS + 1):
        if step != STEPS // 2:
            shutil.rmtree(runs.checkpoints(begun).path(step))
    shutil.copytree(begun, folder / "warm")  # what this process has done once, its forks need not do
    assert forked.here(folder / "warm", ARGS, cache)[0] == 0
    return begun


def cache():
    os.environ["GPTMINI_CACHE_DIR"] = "cache"


def end_of(case, name, before, whole, code, output):
    """Which of the allowed ends a case had; anything else fails."""
    assert code in (0, 4) or (code == 2 and name.name == "config.yaml"), "another exit code"
    assert "Traceback" not in output, "a traceback"
    if code:
        assert output.count("gptmini: ") == 1, "not one line"
        assert contents(case).items() >= before.items(), "a file has changed"
        return f"exit code {code}"
    if name.name == "config.yaml":
        return end_with_another_config(case, whole, output)
    assert runs.checkpoints(case).steps()[-1] == STEPS, "not finished"
    same = runs.manifest(case, STEPS) == runs.manifest(whole, STEPS)
    if not (same and runs.metrics(case) == runs.metrics(whole)):
        assert name.name == "metrics.jsonl", "other bits"
        assert name.name in output, "other metrics without a word"
        assert same, "other weights"
        return "named"
    return "the same bits"


def end_with_another_config(case, whole, output):
    """As `end_of`, where config.yaml may say something else now, such as another out_dir or interval."""
    if "no checkpoint to resume in" in output or "not bit for bit" in output:
        return "named"
    for file in ("model.safetensors", "training/optimizer.safetensors"):
        ours, theirs = (runs.checkpoints(run).path(STEPS) / file for run in (case, whole))
        assert ours.read_bytes() == theirs.read_bytes(), "other weights without a word"
    return "the same weights"
