"""A system call fails, or memory is refused: one line, the right exit code, nothing lost."""

import ctypes
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import faults
import forked
import pytest
import vl_convert

from gptmini import atomic_io

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif("not __import__('sys').platform.startswith('linux')"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@needs_strace
@pytest.mark.parametrize("command", faults.COMMANDS)
def test_a_failing_system_call_is_one_line_and_loses_nothing(tmp_path, long, monkeypatch, command):
    if not long and command not in SHORT:
        pytest.skip("takes minutes: --long")
    forked.reuse_kernel_digest(monkeypatch)
    monkeypatch.setattr(vl_convert, "javascript_bundle", cache(vl_convert.javascript_bundle))
    done = faults.check_system_calls(tmp_path, command, 1 if long else SHORT[command])
    print(f"failed system calls of gptmini {command}: {done.total()}: {dict(done)}")
    assert done.total() >= 5


SHORT = {"import-nanogpt": 12, "export": 50, "resume": 250}  # every so many calls


@needs_strace
@pytest.mark.parametrize(
    ("command", "errors", "on"),
    [
        ("train", {"openat": ["EIO"]}, r'"\.", |removed-step-\d+(/training)?"'),
        ("prepare", {"read": ["EIO"], "newfstatat": ["EIO"]}, r'train\.bin|"corpus\.txt"'),
    ],
)
def test_what_the_long_form_found_stays_mended(tmp_path, monkeypatch, command, errors, on):
    forked.reuse_kernel_digest(monkeypatch)
    done = faults.check_system_calls(tmp_path, command, errors=errors, on=on)
    print(f"failed system calls of gptmini {command}, found by the long form: {done.total()}")
    assert done.total() >= 5


@needs_strace
def test_a_full_disk_that_is_passed_over_would_be_noticed(tmp_path, monkeypatch):
    write_all = atomic_io._write_all

    def write_what_fits(*args):
        with suppress(OSError):
            write_all(*args)

    monkeypatch.setattr(atomic_io, "_write_all", write_what_fits)
    with pytest.raises(AssertionError, match="an output that is not right"):
        faults.check_system_calls(tmp_path, "import-nanogpt", errors={"write": ["ENOSPC"]})


@pytest.fixture
def refuse(tmp_path):
    """allocations.py as a function of the stride and of what is done before; returns the ended process."""
    compiler = shutil.which("cc") or pytest.skip("no C compiler is installed")
    if not hasattr(ctypes.CDLL(None), "__libc_memalign"):
        pytest.skip("the C library is not glibc")
    library = tmp_path / "failing_malloc.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "failing_malloc.c"]
    subprocess.run(command, check=True)

    def run(stride, before="pass"):
        program = f"{before}; import allocations; allocations.main()"
        return subprocess.run(
            [sys.executable, "-c", program, tmp_path, library, str(stride)],
            env={
                **os.environ,
                "LD_PRELOAD": str(library),
                "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
            },
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_refused_allocation_is_one_line_and_loses_nothing(refuse, long):
    done = refuse(1 if long else 90)
    assert done.returncode == 0, done.stderr
    print(f"refused allocations of a run: {done.stdout}")


def test_a_refused_allocation_that_is_passed_over_would_be_noticed(refuse):
    done = refuse(90, "from gptmini.cli import main; main._fail = lambda error, exit_code: 0")
    assert "cases failed:\nallocation 1: exit code 0" in done.stderr
