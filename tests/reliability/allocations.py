"""The N-th large allocation of a training run fails, for every N: one line, exit code 1, nothing lost.

`python allocations.py FOLDER LIBRARY STRIDE` with LIBRARY, made of failing_malloc.c, in LD_PRELOAD; prints
what the runs came to.
"""

import ctypes
import os
import re
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import forked
import runs

STEPS = 2
CONFIG = {
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 64, "context_length": 64, "dropout": 0.1},
    "data": {"corpus": "../corpus.txt"},
    "tokenizer": {"kind": "bytes"},
    "train": {
        "out_dir": "run",
        "max_steps": STEPS,
        "batch_size": 8,
        "eval_interval": 1,
        "eval_tokens": 1000,
        "sample_interval": 2,
        "checkpoint_interval": 1,
        "log_interval": 1,
    },
    "runtime": {"device": "cpu", "precision": "fp32", "threads": 1},
}
ARGS = ["train", "config.yaml", "--resume"]


def check_allocations(folder, library, stride):
    """Returns how often a run ended in which way; AssertionError where one ended in another."""
    whole, counted = runs.new_run(folder, "whole", CONFIG), folder / "counted"
    assert forked.here(runs.new_run(folder, "warm", CONFIG), ARGS)[0] == 0
    code, output = without_cache(
        whole, lambda: library.fail_at(0), lambda: counted.write_text(str(library.allocations()))
    )
    assert code == 0, output
    ends, failures = Counter(), []
    for n in range(1, int(counted.read_text()) + 1, stride):
        case = runs.new_run(folder, "case", CONFIG)
        code, output = without_cache(case, lambda n=n: library.fail_at(n))
        with forked.collected(failures, f"allocation {n}: exit code {code}: {output}"):
            check_end(case, whole, code, output)
        ends[f"exit code {code}"] += 1
    forked.report(failures)
    return ends


def without_cache(run, *hooks):
    """A run that prepares its text too."""
    shutil.rmtree(os.environ["GPTMINI_CACHE_DIR"], ignore_errors=True)
    return forked.run(run, ARGS, *hooks)


def check_end(case, whole, code, output):
    """Exit code 1 with one line, or 0 where the allocation could be done without; then it resumes.

    Rust, in which tiktoken is written, ends the process itself (SIGABRT), also with one line.
    """
    assert "Traceback" not in output, "a traceback"
    if code == -signal.SIGABRT:
        assert re.search(r"^memory allocation of \d+ bytes failed$", output, re.MULTILINE), "a crash"
    else:
        assert code == 1 or (code == 0 and "finished after step" in output), "another exit code than 1"
        assert code == 0 or output.count("gptmini: ") == 1, "not one line"
    runs.assert_whole(case)
    code, output = forked.run(case, ARGS)
    assert code == 0, f"then with enough memory: {output}"
    runs.assert_same_end(case, whole)


def main():
    folder, library, stride = sys.argv[1:]
    print(dict(check_allocations(Path(folder), ctypes.CDLL(library), int(stride))))


if __name__ == "__main__":
    main()
