"""Deliberate mistakes: the package with one piece of its source replaced, and a check that must notice.

A bug is (what is wrong, the check that catches it, the module, the right source, the wrong source).
"""

import traceback
from contextlib import contextmanager
from pathlib import Path

import pytest

from gptmini import atomic_io, lock
from gptmini.checkpoint import gpt2_directory, hf_gpt2, manifest, safetensors_io, state, store
from gptmini.data import batching
from gptmini.training import (
    initialize,
    log_files,
    loss,
    metrics,
    nonfinite,
    optim,
    progress,
    resume,
    run,
    runtime,
    signals,
    trainer,
)

# Each imports names from those before it, so all are executed again, in this order.
MODULES = (
    atomic_io,
    lock,
    safetensors_io,
    manifest,
    hf_gpt2,
    gpt2_directory,
    state,
    store,
    batching,
    signals,
    runtime,
    loss,
    optim,
    log_files,
    progress,
    metrics,
    nonfinite,
    initialize,
    resume,
    trainer,
    run,
)


@contextmanager
def seeded(module, right, wrong):
    """The modules with `wrong` in place of `right` in the source of one of them."""
    before = {each: dict(vars(each)) for each in MODULES}
    try:
        for each in MODULES:
            source = Path(each.__file__).read_text(encoding="utf-8")
            if each is module:
                assert source.count(right) == 1, "the source has changed: adapt the bug"
                source = source.replace(right, wrong)
            exec(compile(source, each.__file__, "exec"), vars(each))
        yield
    finally:
        for each in MODULES:
            vars(each).clear()
            vars(each).update(before[each])


def to_run(bugs, slow, long):
    """The short form leaves out the bugs that take seconds to catch."""
    return bugs if long else [bug for bug in bugs if bug[1] not in slow]


def assert_caught(bug, folder):
    """Put the bug in, and fail unless its check does."""
    what, check, module, right, wrong = bug
    with (
        seeded(module, right, wrong),
        pytest.raises((AssertionError, pytest.fail.Exception, OSError, ValueError)) as caught,
    ):
        check(folder)
    last = traceback.extract_tb(caught.tb)[-1]
    print(f"{what}: {caught.type.__name__} in {last.name}: {str(caught.value)[:200]}")
    assert "adapt the bug" not in str(caught.value), what


def name_of(check):
    """A check's name, with or without arguments of its own."""
    return getattr(check, "func", check).__name__
