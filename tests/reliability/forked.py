"""One case in a process of its own: a command of gptmini in a fork of this process, which is warm.

Importing PyTorch takes seconds and a fork milliseconds, so thousands of cases take minutes.
"""

import io
import os
import signal
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from gptmini.cli import main as cli
from gptmini.training import runtime

LIMIT = 60  # seconds for a case; the machine may be busy


def reuse_kernel_digest(monkeypatch):
    """One digest of the matrix kernels for all forks: to compute it takes a third of a small run's time."""
    digest = runtime.kernel_digest(torch.device("cpu"), {torch.float32})
    monkeypatch.setattr(runtime, "kernel_digest", lambda *args: digest)


def here(folder, args, first=lambda: None):
    """The command in this process, to warm it up: its exit code and its output."""
    output, before, variables, threads = io.StringIO(), os.getcwd(), dict(os.environ), torch.get_num_threads()
    os.chdir(folder)
    first()
    try:
        with redirect_stdout(output), redirect_stderr(output):
            return cli.main([str(arg) for arg in args]), output.getvalue()
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(variables)
        torch.set_num_threads(threads)


def start(folder, args, first=lambda: None, last=lambda: None, limit=LIMIT):
    """Begin the command in a fork, with the folder as its working folder; returns its process id.

    The fork calls `first` before and `last` after it, and writes to output.txt. It is killed after `limit`
    seconds.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.alarm(limit)
        os.chdir(folder)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(fd, "w"), line_buffering=True) for fd in (1, 2))
        torch.set_num_threads(1)  # a fork has no thread pool
        first()
        code = cli.main([str(arg) for arg in args])
        last()
        os._exit(code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(99)


def ended(folder, pid):
    """The exit code of a case, minus the signal that ended it, and its output."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, (Path(folder) / "output.txt").read_text(encoding="utf-8", errors="replace")


def run(folder, args, first=lambda: None, last=lambda: None, limit=LIMIT):
    """The command in a fork, to its end: exit code and output."""
    return ended(folder, start(folder, args, first, last, limit))


@contextmanager
def collected(failures, about):
    """What fails in the block is shown and added to `failures`: one long run finds all there is to find."""
    try:
        yield
    except Exception as error:
        failures.append(f"{about}\n{type(error).__name__}: {error}")
        print(f"\n{failures[-1]}", flush=True)


def report(failures):
    """Fail where any case has failed, with the text of each."""
    assert not failures, f"{len(failures)} cases failed:\n" + "\n\n".join(failures)
