"""What must hold for whole training runs, killed, stopped and resumed, as functions that the tests call.

Each takes an empty folder to work in and returns how many cases it looked at. Two runs are the same where
their last checkpoints have the same manifest, which holds the sha256 of every file (weights, optimizer state,
counters, config), and their metrics the same lines. Times and speeds in the metrics are left out: no two runs
can agree on them.

Most runs are done in forked children of this process, in which PyTorch is imported already; `started` begins
a process as a user does.
"""

import contextlib
import io
import json
import math
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache, partial
from itertools import count
from pathlib import Path

import pytest
import torch
import yaml
from disk import Disk, after_power_loss, put, replay

from gptmini.checkpoint.manifest import verify
from gptmini.checkpoint.store import CheckpointStore
from gptmini.cli import main as cli
from gptmini.config import Config
from gptmini.data.batching import WindowSampler
from gptmini.errors import DivergedError
from gptmini.training import initialize, optim, trainer
from gptmini.training.runtime import start_runtime

ROOT = Path(__file__).parent.parent.parent
TIMES = ("tokens_per_second", "elapsed_seconds")
STEPS = 10
CONFIG = {
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 8, "dropout": 0.2},
    "data": {"corpus": "../corpus.txt"},
    "tokenizer": {"kind": "bytes"},
    "optim": {"optimizer": "muon", "lr": 1e-2, "warmup_steps": 3, "schedule": "linear"},
    "train": {
        "out_dir": "run",
        "max_steps": STEPS,
        "batch_size": 4,
        "micro_batch_size": 2,
        "seed": 3,
        "eval_interval": 4,
        "eval_tokens": 200,
        "sample_interval": 7,
        "checkpoint_interval": 3,
        "log_interval": 1,
    },
    "runtime": {"device": "cpu", "precision": "fp32", "threads": 1},
}


def changed(sections):
    """CONFIG with some keys changed."""
    return {name: {**keys, **sections.get(name, {})} for name, keys in CONFIG.items()}


def new_run(folder, name, config=CONFIG):
    """A folder for a run to be started in, with the config in it and the corpus beside it."""
    if not (folder / "corpus.txt").exists():
        words = random.Random(0).choices(["the", "cat", "sees", "a", "dog", "and", "my", "bird.\n"], k=800)
        (folder / "corpus.txt").write_text(" ".join(words), encoding="utf-8")
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).mkdir()
    (folder / name / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / name


ARGS = ["config.yaml", "--resume"]


def forked(run, args=ARGS, first=lambda: None):
    """`gptmini train` in a forked child of its own folder, which does `first` before; returns its process id.

    It does not wait for the real disk, which proves nothing about a process that ends.
    """
    warm_up()
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(run)
            output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            with open(1, "w") as sys.stdout, open(2, "w") as sys.stderr, Disk().under():
                first()
                code = cli.main(["train", *args])
            os._exit(code)
        finally:
            os._exit(99)
    return pid


@cache
def warm_up():
    """PyTorch's first step takes longer than ten later ones."""
    with tempfile.TemporaryDirectory() as folder:
        in_this_process(new_run(Path(folder), "warm"))


def started(run, args=ARGS):
    """`python scripts/train.py` as a process of its own; returns its process id."""
    with open(run / "output.txt", "w") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "train.py"), *args],
            cwd=run,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    process.returncode = 0  # `ended` waits for it
    return process.pid


def ended(pid):
    """The exit code of a process once it has ended; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(run, begin=forked):
    """Resume to the end."""
    assert ended(begin(run)) == 0, (run / "output.txt").read_text()


def steps_done(run):
    """The steps for which there is a line of metrics, a torn last one left out."""
    path = run / "run" / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def metrics(run, past=0):
    """The lines of metrics after step `past`, without the times."""
    text = (run / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines if line["step"] > past]


def checkpoints(run):
    return CheckpointStore(run / "run", keep=9)


def manifest(run, step):
    return (checkpoints(run).path(step) / "manifest.json").read_bytes()


def uninterrupted(folder, config=CONFIG, name="uninterrupted"):
    """A run that nothing disturbed, made once."""
    if not (folder / name).exists():
        finish(new_run(folder, name, config))
    return folder / name


def assert_same_end(run, other):
    """Both have finished with the same bits, and each line of metrics is there once."""
    last, expected = checkpoints(run).steps()[-1], checkpoints(other).steps()[-1]
    assert last == expected
    verify(checkpoints(run).path(last))
    assert manifest(run, last) == manifest(other, last), differing_files(run, other, last)
    assert metrics(run) == metrics(other)


def differing_files(run, other, step):
    """Which files of a step are not the same in two runs, for the message."""
    ours, theirs = (json.loads(manifest(r, step))["files"] for r in (run, other))
    return [name for name in ours if ours[name] != theirs.get(name)]


def assert_own_losses(run):
    """The validation loss that a checkpoint records is of its own step, or none if that was not evaluated."""
    losses = {line["step"]: line["loss"] for line in metrics(run) if line["split"] == "val"}
    for step in checkpoints(run).steps():
        state = json.loads((checkpoints(run).path(step) / "training" / "state.json").read_text())
        assert state["val_loss"] == losses.get(step), step


def assert_whole(run):
    """Every checkpoint under its final name is complete."""
    for step in checkpoints(run).steps():
        verify(checkpoints(run).path(step))


def check_resume_from_every_step(folder, steps=STEPS, sections=None):
    """A run is stopped after each of its steps in turn, and continues to the same end.

    Each later checkpoint of the resumed run is also held against the uninterrupted one's.
    """
    often = {"max_steps": steps, "checkpoint_interval": 1, "keep_checkpoints": steps + 1}
    config = changed({**(sections or {}), "train": {**(sections or {}).get("train", {}), **often}})
    whole = uninterrupted(folder, config, "whole")
    assert checkpoints(whole).steps() == list(range(1, steps + 1))
    assert_own_losses(whole)
    for step in range(1, steps):
        run = new_run(folder, "resumed", config)
        shutil.copytree(whole / "run", run / "run")  # with the lines past this step, as a crash leaves them
        for later in range(step + 1, steps + 1):
            shutil.rmtree(checkpoints(run).path(later))
        finish(run)
        assert f"resumed at step {step}\n" in (run / "output.txt").read_text()
        for later in range(step + 1, steps + 1):
            assert manifest(run, later) == manifest(whole, later), differing_files(run, whole, later)
        assert metrics(run) == metrics(whole)
    return steps - 1


def check_killed_runs(folder, kills, begin=forked, seed=0):
    """Runs that are killed (-9) at random instants, up to five times each, and then resumed to the end.

    Each begins with preparing its tokens. Returns how many runs that were, for `kills` kills that hit.
    """
    rng, whole = random.Random(seed), uninterrupted(folder)
    seconds, hit = seconds_of_a_run(folder, begin), 0
    for runs in count(1):
        run = new_run(folder, "killed")
        shutil.rmtree(os.environ["GPTMINI_CACHE_DIR"])
        for _ in range(5):
            pid = begin(run)
            wait(pid, seconds * rng.random())
            os.kill(pid, signal.SIGKILL)
            code = ended(pid)
            assert code in (0, -signal.SIGKILL), (run / "output.txt").read_text()
            assert_whole(run)
            hit += code != 0
            if code == 0 or hit == kills:
                break
        finish(run, begin)
        assert_same_end(run, whole)
        if hit == kills:
            return runs


def check_killed_process(folder):
    """A process that is killed (-9) when it has trained a step, and resumed by another."""
    run = new_run(folder, "killed")
    pid = started(run)
    while not steps_done(run):
        wait(pid, 0.01)
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL
    finish(run, started)
    assert_same_end(run, uninterrupted(folder))


def seconds_of_a_run(folder, begin):
    """About how long a run takes; where other programs held it up, no more than twice its processor time."""
    began, before = time.perf_counter(), os.times()
    finish(new_run(folder, "timed"), begin)
    after = os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return min(time.perf_counter() - began, 2 * busy)


def wait(pid, seconds):
    """Until a process has ended, or for so long."""
    with contextlib.closing(os.fdopen(os.pidfd_open(pid))) as process:
        select.select([process], [], [], seconds)


def check_stopped_runs(folder, count, begin=forked, seed=0):
    """SIGINT or SIGTERM at a random instant, now and then two of them.

    Where training has begun, one signal gives exit code 75 and a checkpoint of that very step, or comes after
    the last step. Before that, and at a second one, the process ends by the signal. Resumed, every run ends
    with the same bits. Returns how many ended in which way.
    """
    rng, whole = random.Random(seed), uninterrupted(folder)
    seconds = seconds_of_a_run(folder, begin)
    ways = dict.fromkeys(["saved", "before training", "finished", "second signal"], 0)
    for number in range(count):
        run = new_run(folder, "stopped")
        sent, twice = rng.choice([signal.SIGINT, signal.SIGTERM]), number % 5 == 4
        pid = begin(run)
        for delay in [seconds * rng.random(), *([0.01 * rng.random()] if twice else [])]:
            wait(pid, delay)
            os.kill(pid, sent)
        code, output = ended(pid), (run / "output.txt").read_text()
        ways[way(run, code, sent, twice, output)] += 1
        assert "Traceback" not in output or not steps_done(run), output
        assert_whole(run)
        finish(run)
        assert_same_end(run, whole)
    return ways


def check_signal_at_every_line(folder, stride=1):
    """SIGTERM as each line of the loop begins: exit code 75 and a checkpoint of the last step taken.

    A second one at the next line ends the process at once. Either way the run can be resumed.
    """
    config = changed({"train": {"max_steps": 4, "eval_interval": 3, "sample_interval": None}})
    whole = uninterrupted(folder, config, "short")
    for cases in count():
        for twice in (False, True):
            run = new_run(folder, "stopped", config)
            code = ended(forked(run, first=lambda n=stride * cases, t=twice: at_line(n, t)))
            output = (run / "output.txt").read_text()
            if "finished after step 4" in output:
                assert code in (0, 128 + signal.SIGTERM)
                assert stride * cases > 30, "the signals did not come"
                return cases
            if twice:
                assert code == 128 + signal.SIGTERM, output
            else:
                assert way(run, code, signal.SIGTERM, False, output) == "saved"
            finish(run)
            assert_same_end(run, whole)


def at_line(number, twice):
    """Send SIGTERM to this process as it comes to line `number` of the loop, counted as they are passed."""
    lines = count()

    def on_line(frame, event, arg):
        if event == "line" and next(lines) in ((number, number + 1) if twice else (number,)):
            os.kill(os.getpid(), signal.SIGTERM)
        return on_line

    code = trainer.Trainer.run.__code__
    sys.settrace(lambda frame, event, arg: on_line if frame.f_code is code else None)


def way(run, code, sent, twice, output):
    """In which of the allowed ways a run ended at a signal; anything else fails."""
    steps = checkpoints(run).steps()
    if code == 75:
        stopped = re.search(rf"^gptmini: stopped by {sent.name} after step (\d+); ", output, re.MULTILINE)
        assert stopped, output
        assert steps[-1:] == [int(stopped[1])], "not saved after that step"
        assert steps[-1] == max(steps_done(run))
        return "saved"
    if code == 0 or STEPS in steps:
        assert STEPS in steps, output
        return "finished"
    ended_by_it = code in (-sent, 128 + sent)
    if twice and ended_by_it:
        return "second signal"
    assert ended_by_it, f"exit code {code}: {output}"
    assert not (run / "run" / "metrics.jsonl").exists(), "training had begun, and nothing was saved"
    return "before training"


def in_this_process(run):
    """`gptmini train` in a child would have no thread pool; this leaves everything as it was but the pool."""
    threads = torch.get_num_threads()
    try:
        assert in_folder(run, lambda: cli.main(["train", *ARGS, "--quiet"])) == 0
    finally:
        torch.set_num_threads(threads)


def check_same_twice(folder, times, threads, precision, finish=in_this_process):
    """The same config gives the same bits each time, at a size at which PyTorch does use its threads."""
    config = changed(
        {
            "model": {"n_layer": 1, "n_embd": 64, "context_length": 32},
            "train": {"max_steps": 3, "batch_size": 16, "micro_batch_size": None, "sample_interval": None},
            "runtime": {"threads": threads, "precision": precision},
        }
    )
    ends = set()
    for _ in range(times):
        run = new_run(folder, "again", config)
        finish(run)
        ends.add((manifest(run, 3), json.dumps(metrics(run))))
    assert len(ends) == 1
    return times


INTERVALS = [
    {"eval_interval": 1},
    {"eval_interval": 10, "eval_tokens": 50},
    {"sample_interval": 1},
    {"sample_interval": None},
    {"checkpoint_interval": 1, "keep_checkpoints": 1},
    {"checkpoint_interval": None},
    {"log_interval": 4},
]


def check_intervals(folder):
    """Evaluating, sampling, saving or logging at other intervals changes no bit of weights and optimizer."""
    whole = uninterrupted(folder)
    for intervals in INTERVALS:
        run = new_run(folder, "other", changed({"train": intervals}))
        finish(run)
        for name in ("model.safetensors", "training/optimizer.safetensors"):
            ours, theirs = (checkpoints(r).path(STEPS) / name for r in (run, whole))
            assert ours.read_bytes() == theirs.read_bytes(), f"{name} differs with {intervals}"
        losses = {line["step"]: line["loss"] for line in metrics(whole) if line["split"] == "train"}
        for line in metrics(run):
            assert line["split"] == "val" or line["loss"] == losses[line["step"]]
    return len(INTERVALS)


def check_divergence(folder):
    """A number that is not finite stops the run before the update, exit code 3, and names the windows."""
    often = changed({"train": {"checkpoint_interval": 1}})
    config = Config.model_validate(often)
    cases = [("loss", math.nan, 1), ("loss", math.inf, 5), ("gradient", math.nan, 4)]
    for where, value, step in cases:
        run, message = new_run(folder, "diverged", often), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(message):
            spoil(patch, where, value, at=step)
            updates, seen = count_updates(patch), note_windows(patch)
            code = in_folder(run, lambda: cli.main(["train", *ARGS, "--quiet"]))
        assert code == DivergedError.exit_code == 3
        assert len(updates) == step - 1, "the update was made"
        assert checkpoints(run).steps()[-1:] == [step - 1][: step - 1]
        runtime = start_runtime(config.runtime)
        data = in_folder(run, partial(initialize.build_model_and_data, config, runtime, quiet=True))[1]
        windows = WindowSampler(data.train, config.model.context_length, config.train.seed)
        of_step = windows.starts(step - 1, config.train.batch_size).tolist()
        assert seen[-len(of_step) :] == of_step
        starts = ", ".join(map(str, of_step))
        assert re.fullmatch(r"gptmini: .*\n", message.getvalue())
        assert f"diverged at step {step}: " in message.getvalue()
        assert f"windows at training tokens {starts}." in message.getvalue()
        finish(run)
        assert_same_end(run, uninterrupted(folder, often, "undiverged"))
    check_spoiled_weights(folder, often)
    return len(cases) + 1


def check_spoiled_weights(folder, config):
    """An update that leaves weights which are not finite ends the run before they are saved."""
    run, message, real, updates = new_run(folder, "spoiled", config), io.StringIO(), optim.AdamW.step, []

    def step(self, *skip):
        updates.append(real(self, *skip))
        if len(updates) == 3:
            self.param_groups[0]["params"][0].data[0, 0] = math.inf

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(message):
        patch.setattr(optim.AdamW, "step", step)
        assert in_folder(run, lambda: cli.main(["train", *ARGS, "--quiet"])) == DivergedError.exit_code
    assert "diverged at step 3: " in message.getvalue()
    assert checkpoints(run).steps()[-1] == 2
    finish(run)
    assert_same_end(run, uninterrupted(folder, config, "undiverged"))


def note_windows(patch):
    """A list that grows by the starts of the windows of each micro batch."""
    real, seen = WindowSampler.batch, []
    patch.setattr(
        WindowSampler, "batch", lambda self, starts: seen.extend(starts.tolist()) or real(self, starts)
    )
    return seen


def count_updates(patch):
    """A list that grows by one at each of AdamW's updates, of which a step makes one."""
    real, updates = optim.AdamW.step, []
    patch.setattr(optim.AdamW, "step", lambda self, *skip: updates.append(1) or real(self, *skip))
    return updates


def spoil(patch, where, value, at):
    """Make the loss or its gradient `value` in the second micro batch of a step."""
    real, calls = trainer.next_token_loss, []

    def spoiled(logits, targets):
        calls.append(1)
        if len(calls) != 2 * at:
            return real(logits, targets)
        if where == "loss":
            return real(logits, targets) * value
        logits.register_hook(lambda gradient: gradient * value)
        return real(logits, targets)

    patch.setattr(trainer, "next_token_loss", spoiled)


def in_folder(folder, work):
    """Do something with another working folder."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        return work()
    finally:
        os.chdir(before)


def check_finished_run(folder):
    """A finished run is resumed as a no-op: no file of it changes."""
    run = new_run(folder, "finished")
    finish(run)
    before = {f: f.read_bytes() for f in (run / "run").rglob("*") if f.is_file()}
    finish(run)
    assert {f: f.read_bytes() for f in (run / "run").rglob("*") if f.is_file()} == before
    return 1


def check_locked_run(folder):
    """While a process trains, a second one exits 5 and touches nothing; after its kill the lock is free."""
    run = new_run(folder, "locked", changed({"train": {"max_steps": 10**6}}))
    pid = forked(run)
    try:
        for _ in count():  # until it trains
            wait(pid, 0.01)
            if steps_done(run):
                break
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        before = {f: f.read_bytes() for f in (run / "run").rglob("*") if f.is_file()}
        second = new_run(folder, "second", yaml.safe_load((run / "config.yaml").read_text()))
        few = ["--train.max-steps", "3"]  # should it train after all, it ends
        for args in ([], ["--resume"]):
            code = ended(forked(second, ["config.yaml", "--train.out-dir", str(run / "run"), *few, *args]))
            assert code == 5, (second / "output.txt").read_text()
        assert {f: f.read_bytes() for f in (run / "run").rglob("*") if f.is_file()} == before
    finally:
        os.kill(pid, signal.SIGKILL)
        ended(pid)
    assert ended(forked(run, [*ARGS, "--train.max-steps", str(max(steps_done(run)) + 1)])) == 0
    return 2


def check_failing_save(folder):
    """A file that may not grow as far as the weights: exit code 1, path and cause, and nothing is lost."""
    import resource

    kept = changed({"train": {"keep_checkpoints": STEPS}})
    run, whole = new_run(folder, "full", kept), uninterrupted(folder, kept, "kept")
    shutil.copytree(whole / "run", run / "run")
    *_, step, _, _ = checkpoints(whole).steps()
    for later in checkpoints(whole).steps()[-2:]:
        shutil.rmtree(checkpoints(run).path(later))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        code = ended(forked(run))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    output = (run / "output.txt").read_text()
    assert code == 1, output
    assert re.search(r"^gptmini: run/checkpoints/.*: File too large$", output, re.MULTILINE), output
    assert checkpoints(run).steps()[-1] == step
    assert manifest(run, step) == manifest(whole, step)
    finish(run)
    assert_same_end(run, whole)
    return 1


CHANGES = [
    ({"model": {"n_layer": 1}}, 2, r"model\.n_layer = 1, but the run was started with 2"),
    ({"model": {"context_length": 4}}, 2, r"model\.context_length = 4, but the run was started with 8"),
    ({"tokenizer": {"kind": "chars"}}, 2, r"tokenizer\.kind = chars, but the run was started with bytes"),
    ({"optim": {"optimizer": "adamw"}}, 2, r"optim\.optimizer = adamw, but the run was started with muon"),
    ({"data": {"val_fraction": 0.2}}, 2, r"data\.corpus = .*text or split are not what the run was started"),
    ({"data": {"corpus": "../other.txt"}}, 2, r"data\.corpus = .*text or split are not what the run was"),
    ({"optim": {"lr": 0.5}}, 0, r"resumed, but not bit for bit, because optim\.lr was 0\.01 and is now 0\.5"),
    ({"train": {"seed": 9}}, 0, r"resumed, but not bit for bit, because train\.seed was 3 and is now 9"),
    ({"runtime": {"precision": "bf16"}}, 0, r"not bit for bit, because precision was fp32 and is now bf16"),
    ({"train": {"log_interval": 2}}, 0, r"resumed at step 9"),
]


def check_changes(folder):
    """What was changed before a resume is refused by name, or said where only the bits will differ."""
    run = uninterrupted(folder)
    shutil.rmtree(checkpoints(run).path(STEPS))  # a finished run would train nothing, and so say nothing
    (folder / "other.txt").write_text((folder / "corpus.txt").read_text().replace("cat", "cow"))
    before = {f: f.read_bytes() for f in (run / "run").rglob("*") if f.is_file()}
    for sections, code, message in CHANGES:  # those that are refused come first
        shutil.rmtree(checkpoints(run).path(STEPS), ignore_errors=True)
        (run / "config.yaml").write_text(yaml.safe_dump(changed(sections)))
        assert ended(forked(run)) == code, sections
        output = (run / "output.txt").read_text()
        assert re.search(f"^(gptmini: )?{message}" if code else message, output, re.MULTILINE), output
        if code:
            assert {f: f.read_bytes() for f in (run / "run").rglob("*") if f.is_file()} == before
    return len(CHANGES)


def check_power_loss_of_runs(folder, stride=1, seed=0):
    """At every `stride`-th operation of a run the power goes: of what was saved, nothing is missing.

    That includes the lines of metrics up to the step of the newest checkpoint.
    """
    rng, whole, run = random.Random(seed), uninterrupted(folder), new_run(folder, "powered")
    with Disk().under() as disk:
        in_this_process(run)
    log, cases = inside(disk.log), 0
    for end in range(0, len(log) + 1, stride):
        tree = after_power_loss(replay(log[:end], Path()), rng, keep=rng.choice([0.0, 0.3, 0.7, 1.0]))
        found = new_run(folder, "found")
        put(tree.get("run", {}), found / "run")
        steps = checkpoints(found).steps()
        assert_whole(found)
        expected = [line for line in metrics(whole) if line["step"] <= max(steps, default=0)]
        lines = (found / "run" / "metrics.jsonl").read_bytes() if expected else b""
        kept = [json.loads(line) for line in lines.splitlines()[: len(expected)]]
        assert [{k: v for k, v in line.items() if k not in TIMES} for line in kept] == expected
        if cases % 10 == 0:
            finish(found)
            assert_same_end(found, whole)
        cases += 1
    return cases


def inside(log):
    """The operations in the working folder: those of the token cache lie elsewhere."""
    kept, elsewhere = [], set()
    for name, args, result in log:
        if name == "open":
            (elsewhere.add if Path(args[0]).is_absolute() else elsewhere.discard)(result)
        if not (Path(args[0]).is_absolute() if isinstance(args[0], str | Path) else args[0] in elsewhere):
            kept.append((name, args, result))
    return kept
