"""A system call of a command fails, as a disk or a limit makes it fail: strace attaches to a warm fork.

Every call of every kind in turn, for every command: no traceback, no wrong exit code, nothing lost.
"""

import contextlib
import ctypes
import hashlib
import os
import re
import select
import shutil
import signal
import subprocess
from collections import Counter

import forked
import pytest
import runs
import torch
import yaml

ERRORS = {  # how each system call fails
    "openat": ["EMFILE", "EIO"],
    "write": ["ENOSPC", "EIO"],
    "pwrite64": ["ENOSPC"],
    "fsync": ["EIO"],
    "rename": ["EROFS"],
    "ftruncate": ["EIO"],
    "mkdir": ["ENOSPC"],
    "unlink": ["EIO"],
    "read": ["EIO"],
    "pread64": ["EIO"],
    "getdents64": ["EIO"],
    "newfstatat": ["EIO"],
    "flock": ["ENOLCK"],
}
STEPS = 2
CONFIG = {
    "model": {"n_layer": 1, "n_head": 1, "n_embd": 4, "context_length": 8},
    "data": {"corpus": "corpus.txt", "val_fraction": 0.2},
    "tokenizer": {"kind": "bytes"},
    "train": {
        "out_dir": "run",
        "max_steps": STEPS,
        "batch_size": 2,
        "eval_interval": 1,
        "eval_tokens": 100,
        "sample_interval": 2,
        "checkpoint_interval": 1,
        "keep_checkpoints": 1,
        "log_interval": 1,
    },
    "runtime": {"device": "cpu", "precision": "fp32", "threads": 1},
}
COMMANDS = {
    "train": ["train", "config.yaml"],
    "resume": ["train", "config.yaml", "--resume"],
    "prepare": ["prepare", "config.yaml"],
    "generate": ["generate", "run", "--seed", 1, "--max-new-tokens", 20],
    "evaluate": ["evaluate", "run"],
    "export": ["export", "run", "--output", "out.gguf"],
    "report": ["report", "run", "--output", "out.html"],
    "import-nanogpt": ["import-nanogpt", "ckpt.pt", "out"],
    "verify": ["verify", "run"],
}
OUTPUTS = {"export": "out.gguf", "report": "out.html", "import-nanogpt": "out"}  # what a command writes
PASSED_OVER = ("import-nanogpt", "read")  # Python's zipfile takes any failed read for the end of the file
VARIES = re.compile(r"[\d,]+ tokens/s")


def check_system_calls(folder, command, stride=1, errors=ERRORS, on="", first=lambda: None):
    """Each system call of a command fails once; returns the number of cases by system call.

    Exit code 0 only where the result is right, else 1 and one line, without a traceback. What was there
    before is as it was, and without the fault a run ends with the same bits. Only calls with the regex `on`
    in their arguments, which name files, fail. `first` is called in each fork.
    """
    template = prepared(folder, command)
    code, output, log = case(folder, template, command, first, "-y", "-e", f"trace={','.join(errors)}")
    assert code == 0, output
    (folder / "case").rename(folder / "expected")
    calls, places = Counter(), set()
    for thread, name, args in re.findall(r"^(\d+) +(\w+)\((.*)", log, re.MULTILINE):
        calls[thread, name] += 1  # strace, too, counts those of each thread
        if re.search(on, args) and (command, name) != PASSED_OVER:
            places |= {(name, error, calls[thread, name]) for error in errors[name]}
    done, failures, resumed = Counter(), [], set()
    for name, error, n in sorted(places)[::stride]:
        fault = f"inject={name}:error={error}:when={n}"
        code, output, log = case(folder, template, command, first, "-e", f"trace={name}", "-e", fault)
        failed = "\n".join(line for line in log.splitlines() if "(INJECTED)" in line)
        with forked.collected(failures, f"gptmini {command}, {fault}: exit code {code}\n{failed}\n{output}"):
            check_end(folder, command, code, output, failed, resumed)
        done[name] += bool(failed)  # threads may come in another order
    forked.report(failures)
    return done


def prepared(folder, command):
    """The folder that a command is begun in: made by a whole run, without what the command makes itself."""
    template = folder / "template"
    template.mkdir()
    (template / "corpus.txt").write_text("a cab\nbad cab\n" * 40)
    (template / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    code, output = forked.run(template, COMMANDS["train"], cache)
    assert code == 0, output
    (template / "output.txt").unlink()
    shutil.copytree(template, folder / "whole")
    if command in ("train", "prepare"):
        shutil.rmtree(template / "run")
        shutil.rmtree(template / "cache")
    elif command == "resume":
        shutil.rmtree(runs.checkpoints(template).path(STEPS))
    elif command == "import-nanogpt":
        save_nanogpt(template / "ckpt.pt")
    shutil.copytree(template, folder / "case")  # once in this process: imports and caches are warm then
    assert forked.here(folder / "case", COMMANDS[command], cache)[0] == 0
    return template


def cache():
    os.environ["GPTMINI_CACHE_DIR"] = "cache"


def save_nanogpt(path):
    """A checkpoint as nanoGPT writes it."""
    shape = {"n_layer": 1, "n_head": 1, "n_embd": 4, "block_size": 8, "vocab_size": 64}
    tensors = {"wte.weight": (64, 4), "wpe.weight": (8, 4), "ln_f.weight": (4,), "ln_f.bias": (4,)}
    for name in ("ln_1", "ln_2"):
        tensors |= {f"h.0.{name}.weight": (4,), f"h.0.{name}.bias": (4,)}
    for name, rows, columns in (
        ("attn.c_attn", 12, 4),
        ("attn.c_proj", 4, 4),
        ("mlp.c_fc", 16, 4),
        ("mlp.c_proj", 4, 16),
    ):
        tensors |= {f"h.0.{name}.weight": (rows, columns), f"h.0.{name}.bias": (rows,)}
    model = {f"transformer.{name}": torch.ones(size) for name, size in tensors.items()}
    model["lm_head.weight"] = model["transformer.wte.weight"]
    torch.save({"model": model, "model_args": {**shape, "bias": True, "dropout": 0.0}}, path)


def case(folder, template, command, first, *options):
    """The command in a copy of its template, under strace."""
    shutil.rmtree(folder / "case", ignore_errors=True)
    shutil.copytree(template, folder / "case")
    return traced(folder / "case", COMMANDS[command], first, *options)


def check_end(folder, command, code, output, failed, resumed):
    """Fail unless a command of which a call has failed ended as it should.

    What it left is resumed without the fault, once for all cases that left the same bytes (`resumed`).
    """
    found, expected = folder / "case", folder / "expected"
    silenced = re.search(r"write\([12],", failed)  # words that a full disk did not take
    of_machine = re.search(r'"/(proc|sys|dev|etc)/', failed)  # hardware detection does without
    noted = command == "report" and "no token view" in output  # and the rest of the page is written
    assert "Traceback" not in output, "a traceback"
    assert code in ((0, 1, 75) if silenced else (0, 1)), "another exit code than 1"
    if code == 0 and not (silenced or of_machine or noted):
        right = (expected / "output.txt").read_text()
        assert VARIES.sub("", output) == VARIES.sub("", right), f"other words than:\n{right}"
    if code == 1 and not silenced:
        assert output.count("gptmini: ") == 1, "not one line"
    if command in OUTPUTS:
        written, right = (contents(each / OUTPUTS[command]) for each in (found, expected))
        assert written == right or noted or (code and not written), "an output that is not right"
    if command in ("train", "resume", "prepare"):
        (found / "output.txt").unlink()
        left = hashlib.sha256(repr(contents(found)).encode()).digest()
        if left in resumed:
            return
        runs.assert_whole(found)
        code, output = forked.run(found, COMMANDS["resume"], cache)
        assert code == 0, f"then without the fault: {output}"
        runs.assert_same_end(found, folder / "whole")
        resumed.add(left)
    else:
        assert contents(found / "run") == contents(folder / "template" / "run"), "the run folder changed"


def contents(path):
    """The files of a folder, or one file: each with its bytes; nothing where there is nothing."""
    files = [path] if path.is_file() else [f for f in sorted(path.rglob("*")) if f.is_file()]
    return {str(f.relative_to(path)): f.read_bytes() for f in files}


def attach(pid, *options):
    """strace on a process that waits; returns when every later system call will be seen."""
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(pid), *options],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    line = tracer.stderr.readline()
    if "attached" not in line:
        tracer.kill()
        tracer.wait()
        raise OSError(f"strace cannot attach to a process: {line}")
    return tracer


def traced(folder, args, first, *options):
    """A command in a fork under strace: its exit code, its output, and strace's log."""
    log = folder / "strace.txt"
    (reading, writing), (ready, tell) = os.pipe(), os.pipe()

    def wait():
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).prctl(
                0x59616D61, ctypes.c_ulong(-1), 0, 0, 0
            )  # PR_SET_PTRACER: who is no root may attach
        cache()
        first()
        os.close(writing)
        os.write(tell, b".")
        select.select([reading], [], [])  # until strace is attached

    pid = forked.start(folder, args, wait)
    os.read(ready, 1)
    for end in (reading, ready, tell):
        os.close(end)
    try:
        tracer = attach(pid, "-o", str(log), *options)
    except OSError as error:
        os.kill(pid, signal.SIGKILL)
        forked.ended(folder, pid)
        pytest.skip(str(error))
    finally:
        os.close(writing)
    code, output = forked.ended(folder, pid)
    tracer.communicate()
    text = log.read_text(errors="replace")
    log.unlink()
    return code, output, text
