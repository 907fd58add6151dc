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
import pytest
import vl_convert

from gptmini import atomic_io

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif("not __import__('sys').platform.startswith('linux')"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


@pytest.fixture
def _tracer(tmp_path):
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run(
        ["strace", "-o", os.devnull, "true"], stderr=subprocess.DEVNULL, check=False
    ).returncode:
        pytest.skip("this system does not let strace trace")


@pytest.mark.usefixtures("_tracer")
@pytest.mark.parametrize("command", faults.COMMANDS)
def test_a_failing_system_call_is_one_line_and_loses_nothing(tmp_path, long, monkeypatch, command):
    if not long and command not in SHORT:
        pytest.skip("takes minutes: --long")
    monkeypatch.setattr(vl_convert, "javascript_bundle", cache(vl_convert.javascript_bundle))
    done = faults.check_system_calls(tmp_path, command, 1 if long else SHORT[command])
    print(f"failed system calls of gptmini {command}: {done.total()}: {dict(done)}")
    assert done.total() >= 5


SHORT = {"import-nanogpt": 12, "export": 50, "resume": 250}  # every so many calls


@pytest.mark.usefixtures("_tracer")
def test_a_full_disk_that_is_passed_over_would_be_noticed(tmp_path, monkeypatch):
    write_all = atomic_io._write_all

    def write_what_fits(*args):
        with suppress(OSError):
            write_all(*args)

    monkeypatch.setattr(atomic_io, "_write_all", write_what_fits)
    with pytest.raises(AssertionError, match="an output that is not right"):
        faults.check_system_calls(tmp_path, "import-nanogpt", errors={"write": ["ENOSPC"]})


def test_a_refused_allocation_is_one_line_and_loses_nothing(tmp_path, long):
    compiler = shutil.which("cc") or pytest.skip("no C compiler is installed")
    if not hasattr(ctypes.CDLL(None), "__libc_memalign"):
        pytest.skip("the C library is not glibc")
    library = tmp_path / "failing_malloc.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "failing_malloc.c"]
    subprocess.run(command, check=True)
    done = subprocess.run(
        [sys.executable, HERE / "allocations.py", tmp_path, library, "1" if long else "60"],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(f"refused allocations of a run: {done.stdout}")
