"""Commands that read a run which saves at every step and keeps one checkpoint: none is told of damage."""

import os
import signal

import forked
import pytest
import runs

pytestmark = [
    pytest.mark.skipif("not hasattr(__import__('os'), 'pidfd_open')"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

CONFIG = runs.changed(
    {
        "train": {
            "max_steps": 10**6,
            "eval_interval": 1,
            "eval_tokens": 20,
            "checkpoint_interval": 1,
            "keep_checkpoints": 1,
            "sample_interval": None,
        }
    }
)
RUN = "../run/run"
READERS = [
    ["generate", RUN, "--max-new-tokens", "1", "--seed", "1"],
    ["evaluate", RUN],
    ["export", RUN, "--output", "{}.gguf"],
]
AT_A_TIME = 4


def check_readers(folder, number):
    """So many commands, some at a time, beside the run; returns how many steps it saved meanwhile."""
    run = runs.new_run(folder, "run", CONFIG)
    folders = [folder / f"reader-{n}" for n in range(AT_A_TIME)]
    for each in folders:
        each.mkdir()
    trainer = runs.forked(run)
    try:
        while not (run / "run" / "checkpoints").is_dir() or not runs.checkpoints(run).steps():
            runs.wait(trainer, 0.01)
        first = runs.checkpoints(run).steps()[-1]
        commands = [[arg.format(n) for arg in READERS[n % len(READERS)]] for n in range(number)]
        for n in range(0, number, AT_A_TIME):
            batch = commands[n : n + AT_A_TIME]
            pids = [forked.start(each, args) for each, args in zip(folders, batch, strict=False)]
            for each, args, pid in zip(folders, batch, pids, strict=False):
                code, output = forked.ended(each, pid)
                assert code == 0, f"gptmini {' '.join(args)}: exit code {code}: {output}"
        return max(runs.steps_done(run)) - first
    finally:
        os.kill(trainer, signal.SIGKILL)
        runs.ended(trainer)


def test_readers_beside_a_run_that_prunes_find_a_checkpoint(tmp_path, long):
    number = 200 if long else 12
    saves = check_readers(tmp_path, number)
    print(f"readers beside a run: {number}, while it saved {saves} steps")
    assert saves > 0
