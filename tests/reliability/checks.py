"""What must hold for a run folder, as functions that the tests call and that no seeded bug may survive.

Each takes an empty folder to work in and returns how many cases it tried.
"""

import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
from contextlib import closing, redirect_stderr
from itertools import count

import hostile
import pytest
import torch
from disk import Disk, after_power_loss, failing, kill, kill_inside, lie, put, replay, short_write
from transformers import AutoModelForCausalLM

from gptmini import atomic_io
from gptmini.checkpoint import gpt2_directory, hf_gpt2, manifest, safetensors_io, state, store
from gptmini.checkpoint.state import Checkpoint, TrainingState
from gptmini.config import GPTConfig
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import DamagedError, InUseError, UserError

CONFIG = GPTConfig(n_layer=1, n_head=1, n_embd=2, context_length=2, vocab_size=3)
VAL_LOSSES = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 0.5, 6: 2.5}


class PlainTokenizer:
    """What a store needs of a tokenizer."""

    end_of_text = start_token = 0

    def files(self, context_length):
        return {"vocabulary.txt": b"one\ntwo\nthree\n"}


def checkpoint(step):
    """The one state that training reaches at `step`."""
    generator = torch.Generator().manual_seed(step)
    shapes = hf_gpt2.parameter_shapes(CONFIG)
    model = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    optimizer = {f"{name}.exp_avg": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    optimizer["ln_f.bias.step"] = torch.tensor(float(step))
    optimizer["ln_f.bias.exp_avg_sq"] = torch.randn(2, generator=generator, dtype=torch.float64)
    state = TrainingState(
        step=step,
        tokens=64 * step,
        val_loss=VAL_LOSSES[step],
        best_step=min(range(1, step + 1), key=lambda s: VAL_LOSSES[s] or 9.0),
        config={"optim": {"lr": 1e-3}},
        data_digest="d",
        tokenizer_digest="t",
        environment={"torch": torch.__version__},
    )
    return Checkpoint(step, model, optimizer, state)


def assert_same(found, expected):
    assert found.state.model_dump() == expected.state.model_dump()
    assert found.step == expected.step
    model = {name: tensor for name, tensor in found.model.items() if name != "lm_head.weight"}
    for one, other in [(model, expected.model), (found.optimizer, expected.optimizer)]:
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            assert torch.equal(one[name], other[name]), name


def train_steps(run, last_step, saved=lambda step: None):
    """Act as a training run: lock, clean, resume, and at each step a line of metrics and a checkpoint."""
    checkpoints = store.CheckpointStore(run, keep=1)
    with checkpoints.lock():
        checkpoints.clean()
        found, skipped = checkpoints.latest()
        assert not skipped
        step = found.step if found else 0
        atomic_io.filter_lines(run / "metrics.jsonl", lambda line: json.loads(line)["step"] <= step)
        with closing(atomic_io.AppendOnlyLog(run / "metrics.jsonl")) as lines:
            while step < last_step:
                step += 1
                lines.append(json.dumps({"step": step}))
                lines.sync()
                checkpoints.save(checkpoint(step), CONFIG, PlainTokenizer())
                saved(step)


def assert_intact(run, promised):
    """The newest checkpoint is the last whose save returned, or the one after it; every one verifies."""
    checkpoints = store.CheckpointStore(run, keep=1)
    for step in checkpoints.steps():
        manifest.verify(checkpoints.path(step))
    found, _ = checkpoints.latest()
    step = found.step if found else 0
    assert step in (promised, promised + 1)
    if found:
        assert_same(found, checkpoint(step))
        lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        assert lines[:step] == [b'{"step": %d}\n' % n for n in range(1, step + 1)]


def assert_finished(run, last_step):
    """The run resumes, and after one more step its folder is that of an uninterrupted run, to the byte.

    (Until that step, a checkpoint that a killed run did not come to prune is still there.)
    """
    uninterrupted = run.parent / f"uninterrupted-{last_step}"
    with Disk().under():
        train_steps(run, last_step + 1)
        if not uninterrupted.exists():
            train_steps(uninterrupted, last_step + 1)
    assert contents(run) == contents(uninterrupted)


STRAYS = ("README.md", ".DS_Store", ".gitattributes", ".cache/huggingface/x", ".ipynb_checkpoints/x-copy",
          "training/.DS_Store")  # fmt: skip
"""What others may put into a step's folder."""


def contents(folder):
    """Its files, less those of others in a step's folder."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(p): (folder / p).read_bytes() for p in found if not str(p).endswith(STRAYS)}


def put_strays(step_folder):
    for name in STRAYS:
        (step_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (step_folder / name).write_text(name)


def found_strays(step_folder):
    """Those that are still there, unchanged."""
    return [name for name in STRAYS if (path := step_folder / name).exists() and path.read_text() == name]


def started_run(folder, strays=False):
    """A run that has saved step 1, made once and copied."""
    if not (folder / "started").exists():
        with Disk().under():
            train_steps(folder / "started", 1)
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folder / "started", run)
    if strays:
        put_strays(run / "checkpoints" / "step-00000001")
    return run


def in_a_child(work):
    """Do `work(report)` in a forked process; returns the last number reported, and whether it was killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)  # the parent's thread pool is not there after a fork
            work(lambda number: os.write(writing, bytes([number])))
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as reports:
        numbers = reports.read()
    status = os.waitpid(pid, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0, "the child failed"
    return (numbers[-1] if numbers else None), killed


def check_kills(folder, stride=1, last_step=3, strays=False):
    """Kill -9 at every operation of a resume and its saves, and inside each write.

    With `strays`, others have put files into the step's folder: they stay there.
    """
    kills = 0
    for fault in (kill, kill_inside):
        for at in count(0, stride):
            run = started_run(folder, strays)

            def work(report, run=run, fault=fault, at=at):
                with Disk(fault, at).under():
                    train_steps(run, last_step, report)

            promised, killed = in_a_child(work)
            if not killed:
                break
            kills += 1
            assert_intact(run, promised or 1)
            assert_finished(run, last_step)
            assert not strays or found_strays(run / "checkpoints" / "step-00000001") == [*STRAYS]
    return kills


def check_kill_chains(folder, chains, seed=0, last_step=4):
    """Runs that are killed again and again at random operations, also while they recover."""
    rng = random.Random(seed)
    kills = 0
    for _ in range(chains):
        run, killed, promised = started_run(folder), True, 1
        while killed:
            fault, at = rng.choice([kill, kill_inside]), rng.randrange(150)

            def work(report, run=run, fault=fault, at=at):
                with Disk(fault, at).under():
                    train_steps(run, last_step, report)

            reported, killed = in_a_child(work)
            promised = max(promised, reported or 0)
            found, _ = store.CheckpointStore(run, keep=1).latest()
            assert_intact(run, promised)
            promised = found.step  # what was found complete must never go back
            kills += killed
        assert_finished(run, last_step)
    return kills


def check_power_loss(folder, states, seed=0):
    """Every instant of a run, with many ways of losing what was not synced, until `states` were different."""
    rng = random.Random(seed)
    root = folder / "disk"
    root.mkdir()
    with Disk().under() as disk:
        for last_step in (3, 5):  # the second one resumes
            train_steps(
                root / "runs" / "a", last_step, lambda step: disk.log.append(("saved", (step,), None))
            )
    instants = [(replay(disk.log[:n], root), last_saved(disk.log[:n])) for n in range(len(disk.log) + 1)]
    seen, sampled = set(), 0
    while len(seen) < states:
        for disk_then, promised in instants:
            sampled += 1
            tree = after_power_loss(disk_then, rng, keep=rng.choice([0.0, 0.2, 0.5, 0.8, 1.0]))
            if (key := repr((promised, tree))) in seen:
                continue
            seen.add(key)
            put(tree, folder / "found")
            run = folder / "found" / "runs" / "a"
            store.CheckpointStore(run, keep=1).clean()
            assert_intact(run, promised)
            shutil.rmtree(folder / "found")
    return sampled, len(seen)


def last_saved(log):
    """The step of the last save that had returned."""
    return max((args[0] for name, args, _ in log if name == "saved"), default=0)


FAULTS = {
    "ENOSPC": failing(errno.ENOSPC),
    "EIO": failing(errno.EIO),
    "EROFS": failing(errno.EROFS),
}


def check_faults(folder, stride=1, last_step=3):
    """Each operation fails, once or from then on: an error with path and cause, nothing lost, no litter."""
    cases = 0
    for name, fault in FAULTS.items():
        for for_good in (False, True):
            for at in count(0, stride):
                run, promised = started_run(folder), [1]
                cause = os.strerror(getattr(errno, name))
                with Disk(fault, at, for_good).under() as disk:
                    try:
                        train_steps(run, last_step, promised.append)
                        error = None
                    except OSError as raised:
                        error = str(raised)
                if len(disk.log) <= at:
                    break
                cases += 1
                assert error, f"{name} at operation {at} ({disk.log[at][0]}) was swallowed"
                assert cause in error
                assert str(run) in error, error
                assert "gptmini-tmp" not in error, error
                assert_intact(run, promised[-1])
                assert_finished(run, last_step)
    return cases


def check_short_writes(folder, stride=1, last_step=3):
    """Each write takes half of what it is given: nothing is lost."""
    for cases in count():
        run = started_run(folder)
        with Disk(short_write, cases * stride).under() as disk:
            train_steps(run, last_step)
        if len(disk.log) <= cases * stride:
            return cases
        assert_finished(run, last_step)


def check_lying_disk(folder, stride=1):
    """A disk corrupts one write of a save silently: the save fails, and the previous checkpoint stays."""
    for cases in count():
        run = started_run(folder)
        checkpoints, damage = store.CheckpointStore(run, keep=1), None
        with Disk(lie, cases * stride).under() as disk:
            try:
                checkpoints.save(checkpoint(2), CONFIG, PlainTokenizer())
            except DamagedError as error:
                damage = error
        if len(disk.log) <= cases * stride:
            return cases
        assert (damage is not None) == (disk.log[cases * stride][0] == "write")
        assert checkpoints.steps() == ([1] if damage else [2])


def step_folder(folder):
    """One small checkpoint, complete."""
    train_steps(folder / "run", 1)
    return folder / "run" / "checkpoints" / "step-00000001"


def refused(folder, path):
    """The checkpoint in `folder` is refused, and the refusal names `path`."""
    with pytest.raises(DamagedError) as refusal:
        manifest.verify(folder)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 4


def overwrite(path, content):
    """Change a file in place, which is faster than writing a new one."""
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate()


def check_bit_flips(folder, stride=1):
    """Every `stride`-th bit of every file is flipped."""
    step, flips = step_folder(folder), 0
    for path in sorted(p for p in step.rglob("*") if p.is_file()):
        original = path.read_bytes()
        for bit in range(flips % stride, 8 * len(original), stride):
            flipped = bytearray(original)
            flipped[bit // 8] ^= 1 << bit % 8
            overwrite(path, flipped)
            refused(step, path)
            flips += 1
        overwrite(path, original)
    manifest.verify(step)
    return flips


def check_lengths(folder, stride=1):
    """Every file is cut at every `stride`-th length, and has bytes appended."""
    step, cases = step_folder(folder), 0
    for path in sorted(p for p in step.rglob("*") if p.is_file()):
        original = path.read_bytes()
        changed = [original[:length] for length in range(cases % stride, len(original), stride)]
        for content in [*changed, original + b"\0", original + b"\n", original + b" ", original + original]:
            overwrite(path, content)
            refused(step, path)
            cases += 1
        overwrite(path, original)
    manifest.verify(step)
    return cases


def check_missing_and_extra(folder):
    """Every file goes missing, becomes a link to itself or to another file, or gets company."""
    step, cases = step_folder(folder), 0
    aside = folder / "aside"
    for path in sorted(p for p in step.rglob("*") if p.is_file()):
        path.rename(aside)
        refused(step, path)
        path.symlink_to(aside)  # as in the Hub's cache
        manifest.verify(step)
        path.unlink()
        path.symlink_to(__file__)
        refused(step, path)
        path.unlink()
        aside.rename(path)
        extra = path.with_name("extra")
        extra.write_bytes(b"")
        manifest.verify(step)
        extra.unlink()
        cases += 4
    manifest.verify(step)
    return cases


def check_strays(folder):
    """What others put into a step's folder stays there when it is pruned, or damaged and saved again."""
    checkpoints = store.CheckpointStore(folder / "run", keep=1)
    for step in (1, 2):
        checkpoints.save(checkpoint(step), CONFIG, PlainTokenizer())
        put_strays(checkpoints.path(step))
    assert_same(checkpoints.latest()[0], checkpoint(2))
    assert checkpoints.steps() == [2]
    first = {str(p.relative_to(checkpoints.path(1))) for p in checkpoints.path(1).rglob("*") if p.is_file()}
    assert first == {*STRAYS} == {*found_strays(checkpoints.path(1))}
    for name in ("manifest.json", "model.safetensors"):
        (checkpoints.path(2) / name).write_bytes(b"{}")
        checkpoints.save(checkpoint(2), CONFIG, PlainTokenizer())
        assert_same(checkpoints.latest()[0], checkpoint(2))
        assert found_strays(checkpoints.path(2)) == [*STRAYS]
    return 2 * len(STRAYS)


def check_fallback(folder):
    """With any file of the newest checkpoint damaged, a resume uses the previous one and reports it."""
    checkpoints, cases = store.CheckpointStore(folder / "run", keep=9), 0
    for step in (1, 2):
        checkpoints.save(checkpoint(step), CONFIG, PlainTokenizer())
    for path in sorted(p for p in checkpoints.path(2).rglob("*") if p.is_file()):
        original = path.read_bytes()
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        found, skipped = checkpoints.latest()
        assert_same(found, checkpoint(1))
        assert len(skipped) == 1
        assert str(path) in skipped[0]
        path.write_bytes(original)
        cases += 1
    return cases


def check_round_trip(folder):
    """Everything that was saved is loaded, to the bit."""
    checkpoints = store.CheckpointStore(folder / "run", keep=1)
    for step in VAL_LOSSES:
        checkpoints.save(checkpoint(step), CONFIG, PlainTokenizer())
        assert_same(checkpoints.latest()[0], checkpoint(step))
    return len(VAL_LOSSES)


def check_pruning(folder):
    """The newest and the best stay, a damaged newer one does not count, all others go."""
    checkpoints = store.CheckpointStore(folder / "run", keep=1)
    expected = {1: [1], 2: [2], 3: [2, 3], 4: [2, 4], 5: [5], 6: [5, 6]}
    for step, kept in expected.items():
        checkpoints.save(checkpoint(step), CONFIG, PlainTokenizer())
        assert checkpoints.steps() == kept
        assert checkpoints.best() == checkpoints.path(checkpoint(step).state.best_step)
    (checkpoints.path(6) / "model.safetensors").write_bytes(b"{}")
    shutil.copytree(checkpoints.path(6), checkpoints.path(9))
    checkpoints.save(checkpoint(6), CONFIG, PlainTokenizer())  # written anew, because it was damaged
    assert checkpoints.steps() == [5, 6, 9]
    assert checkpoints.latest()[0].step == 6
    return len(expected)


def damage(path, flip=1):
    """Change the last byte but two of a file, so that JSON stays JSON."""
    content = bytearray(path.read_bytes())
    content[-3] ^= flip
    path.write_bytes(content)


def saved_steps(run, last_step):
    """A store that has saved steps 1 to `last_step` and pruned none."""
    checkpoints = store.CheckpointStore(run, keep=9)
    with Disk().under():
        for step in range(1, last_step + 1):
            checkpoints.save(checkpoint(step), CONFIG, PlainTokenizer())
    return checkpoints


def check_pruning_of_damaged(folder):
    """A checkpoint that is damaged deletes no other one, and does not count as kept."""
    expected = {1: {2, 4, 6}, 2: {3, 4, 6}, 3: {2, 4, 6}, 4: {2, 3, 6}}  # by what is damaged; 2 is the best
    cases = 0
    for name in (manifest.STATE, "model.safetensors", "manifest.json"):
        for damaged, whole in expected.items():
            for resumed in (False, True):
                checkpoints = saved_steps(folder / f"run-{cases}", 4)
                path = checkpoints.path(damaged) / name
                content = path.read_bytes()
                if name == manifest.STATE:  # the best would be the worst, or another one the best
                    loss, other = json.dumps(VAL_LOSSES[damaged]), b"9.5" if damaged == 2 else b"0.1"
                    changed = content.replace(f'"val_loss": {loss}'.encode(), b'"val_loss": ' + other)
                else:
                    changed = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
                assert changed != content
                path.write_bytes(changed)
                if resumed:
                    checkpoints = store.CheckpointStore(checkpoints.run_folder, keep=2)
                checkpoints.keep = 2
                with Disk().under():
                    checkpoints.save(checkpoint(6), CONFIG, PlainTokenizer())
                assert set(checkpoints.steps()) - {damaged} == whole, (name, damaged)
                assert damaged in checkpoints.steps() or (name == "model.safetensors" and damaged != 2)
                cases += 1
    return cases


def check_best_damaged(folder):
    """Where the best checkpoint is damaged, the newest whole one is read, and a line says so."""
    cases = 0
    for damaged in ((2,), (2, 4)):  # 4 is the newest
        for name in ("config.json", "model.safetensors", manifest.STATE, "manifest.json"):
            checkpoints = saved_steps(folder / f"run-{cases}", 4)
            for step in damaged:
                overwrite(checkpoints.path(step) / name, b"{}")
            with redirect_stderr(io.StringIO()) as said:
                model, _ = store.load_model(checkpoints.run_folder)
            newest = 3 if 4 in damaged else 4
            assert torch.equal(model.ln_f.weight, checkpoint(newest).model["ln_f.weight"])
            line, end = said.getvalue().split("\n")
            assert "step-00000002/" in line
            assert line.endswith(f"step-{newest:08d} is read instead")
            assert not end
            cases += 1
    return cases


def check_readers(folder, stride=1):
    """At any line of a reader, a run saves and prunes what is being read: another one is read, in silence."""
    tokenizer = Tokenizer.train("abc", "chars")
    places = tuple(module.__file__ for module in (store, state, manifest, safetensors_io, gpt2_directory))
    checkpoints, second = store.CheckpointStore(folder / "started", keep=1), checkpoint(2)
    checkpoints.save(checkpoint(1), CONFIG, tokenizer)
    for cases in count():
        run, lines = folder / f"run-{cases}", iter(range(cases * stride, -1, -1))
        shutil.copytree(checkpoints.run_folder, run)
        training = store.CheckpointStore(run, keep=1)

        def trace(frame, event, arg, lines=lines, training=training):
            if frame.f_code.co_filename not in places:
                return None
            if event == "line" and next(lines, None) == 0:
                sys.settrace(None)
                with Disk().under():
                    training.save(second, CONFIG, tokenizer)
                return None
            return trace

        with redirect_stderr(io.StringIO()) as said:
            sys.settrace(trace)
            try:
                model, found = store.load_model(run)
            finally:
                sys.settrace(None)
        weights = [checkpoint(step).model["ln_f.weight"] for step in (1, 2)]
        assert any(torch.equal(model.ln_f.weight, weight) for weight in weights)
        assert found.digest == tokenizer.digest
        assert said.getvalue() == ""
        if training.steps() == [1]:  # the reader was faster
            return cases
        shutil.rmtree(run)


def check_lock(folder):
    """While one holds the run folder, another is refused and changes nothing."""
    checkpoints = store.CheckpointStore(folder / "run", keep=1)
    with checkpoints.lock():
        before = contents(folder)
        with pytest.raises(InUseError) as refusal, store.CheckpointStore(folder / "run", keep=1).lock():
            pass
        assert refusal.value.exit_code == 5
        assert contents(folder) == before
    with checkpoints.lock():
        return 1


def check_moved_folder(folder):
    """A run whose folder, or only its lock, is removed fails at its next save and makes no new one."""
    taken_away = {"folder": "run", "lock": "run/.lock"}
    for name, path in taken_away.items():
        checkpoints = store.CheckpointStore(folder / name / "run", keep=1)
        with checkpoints.lock():
            checkpoints.save(checkpoint(1), CONFIG, PlainTokenizer())
            os.rename(folder / name / path, folder / name / "elsewhere")
            before = contents(folder)
            with pytest.raises(OSError, match="was removed or moved while in use"):
                checkpoints.save(checkpoint(2), CONFIG, PlainTokenizer())
            assert contents(folder) == before
    return len(taken_away)


def check_torn_lines(folder):
    """A line torn at any byte is dropped, and so are lines past the resumed step."""
    path, line = folder / "metrics.jsonl", b'{"step": 2}\n'
    for cut in range(len(line)):
        path.write_bytes(b'{"step": 1}\n{"step": 3}\n' + line[:cut])
        atomic_io.filter_lines(path, lambda line: json.loads(line)["step"] < 3)
        assert path.read_bytes() == b'{"step": 1}\n'
    return len(line)


def check_transformers(folder):
    """Another program computes the same from the files."""
    path = step_folder(folder)
    tokens = torch.tensor([[0, 1], [2, 1]])
    theirs = AutoModelForCausalLM.from_pretrained(path)
    with torch.inference_mode():
        assert (store.load_model(path)[0](tokens) - theirs(tokens).logits).abs().max() < 1e-4
    return 1


def check_hostile(folder, only=None):
    """Checkpoints made to do harm, each read by `load` and by a resume, in a process with little memory.

    `only` names the file that is to do it.
    """
    valid_step, marker = step_folder(folder), folder / "executed"
    valid_hub = folder / "hub"
    shutil.copytree(valid_step, valid_hub)
    (valid_hub / "manifest.json").unlink()
    shutil.rmtree(valid_hub / "training")
    config = json.loads((valid_hub / "config.json").read_bytes())
    state = json.loads((valid_step / "training" / "state.json").read_bytes())
    valid_manifest = json.loads((valid_step / "manifest.json").read_bytes())
    del valid_manifest["sha256"]
    contents_of = {
        ("hub", "model.safetensors"): hostile.weights(marker),
        ("hub", "config.json"): hostile.configs(config),
        ("hub", "model.safetensors.index.json"): hostile.indexes(),
        ("run", "config.json"): hostile.configs(config),
        ("run", "training/optimizer.safetensors"): hostile.weights(marker),
        ("run", "training/state.json"): hostile.states(state, marker),
        ("run", "manifest.json"): hostile.manifests(valid_manifest),
    }
    cases = []
    for (kind, name), contents in contents_of.items():
        for what, content in contents.items() if only in (None, name) else ():
            if name == "training/optimizer.safetensors" and what in hostile.STRANGE:
                continue  # the optimizer compares them with those it needs
            case, hub = copied(folder, kind, valid_hub, valid_step, len(cases))
            if name == "model.safetensors.index.json":
                (hub / "model.safetensors").unlink()
            (hub / name).write_bytes(hostile.with_checksum(content) if name == "manifest.json" else content)
            if kind == "run" and name != "manifest.json":
                hostile.rewrite_manifest(hub)
            cases.append((f"{kind} {name}: {what}", case))
    for name in ("model.safetensors", "config.json") if only is None else ():
        for what, make in hostile.SPECIAL_FILES.items():
            case, hub = copied(folder, "hub", valid_hub, valid_step, len(cases))
            (hub / name).unlink()
            make(hub / name)
            cases.append((f"hub {name}: {what}", case))
    for name in ("model.safetensors", "config.json", "manifest.json") if only in (None, "links") else ():
        for what, make in {**hostile.SPECIAL_FILES, **hostile.LINKS}.items():
            case, hub = copied(folder, "run", valid_hub, valid_step, len(cases))
            (hub / name).unlink()
            make(hub / name)
            cases.append((f"run {name}: {what}", case))

    outcomes = read_with_little_memory(folder, cases)
    for name, _ in cases:
        assert outcomes[name] == "refused", f"{name}: {outcomes[name]}"
    assert outcomes["forbidden"] == []
    assert not marker.exists()
    return len(cases)


def copied(folder, kind, valid_hub, valid_step, number):
    """A folder for `load`, and the GPT-2 directory in it: a copy of a valid one, to be damaged."""
    case = folder / f"case-{number}"
    hub = case if kind == "hub" else case / "checkpoints" / "step-00000001"
    shutil.copytree(valid_hub if kind == "hub" else valid_step, hub)
    return case, hub


SPARE_MEMORY = 640 * 2**20  # the largest causal mask, twice while it is made, and some


def read_with_little_memory(folder, cases):
    """What reading each case came to, and the forbidden things that were tried, from a limited process."""
    report = folder / "report.json"

    def read_all(_):
        signal.alarm(300)  # a read that waits for ever ends the process
        forbidden = []
        sys.addaudithook(
            lambda event, args: is_forbidden(event, args) and forbidden.append([event, repr(args)])
        )
        with open("/proc/self/statm") as sizes:
            size = int(sizes.read().split()[0]) * resource.getpagesize() + SPARE_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        outcomes = {name: outcome(path) for name, path in cases}
        report.write_text(json.dumps({**outcomes, "forbidden": forbidden}))

    _, killed = in_a_child(read_all)
    assert not killed
    return json.loads(report.read_text())


def is_forbidden(event, args):
    """Running something, or opening what an index or a manifest points to outside its folder."""
    if event == "open":
        return isinstance(args[0], str) and any(word in args[0] for word in ("passwd", "../outside"))
    return event in ("pickle.find_class", "os.system", "os.exec", "subprocess.Popen", "socket.connect")


def outcome(path):
    """`refused` if a reader refused it, cleanly, and no other stumbled; else what happened."""
    refusals = 0
    readers = [lambda: store.load_model(path)]
    if (path / "checkpoints").exists():
        readers.append(store.CheckpointStore(path, keep=1).latest)
    for read in readers:
        try:
            read()
        except (UserError, DamagedError) as error:
            message = str(error)
            if not message.isprintable() or len(message) > 600:
                return f"not a clean line: {message!r:.300}"
            refusals += 1
        except BaseException as error:
            return f"{type(error).__name__}: {str(error)[:300]}"
    return "refused" if refusals else "accepted"
