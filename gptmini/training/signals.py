"""Ctrl-C, SIGTERM and a closed terminal (SIGHUP): finish the step and save, or clean up and end."""

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from gptmini.atomic_io import deleted_on_failure

SIGHUP: int = getattr(signal, "SIGHUP", 0)  # the smallest number of a signal; Windows has none


class StopSignal:
    """A flag that SIGINT (Ctrl-C), SIGTERM or SIGHUP sets; a second SIGINT or SIGTERM exits at once.

    That is safe at any instant, because every file is written whole or not at all. A terminal that closes
    sends SIGHUP more than once (the kernel, the shell), so that one never counts as the second.
    """

    def __init__(self) -> None:
        self.received = 0  # the number of the signal; 0: none so far

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if min(number, self.received) > SIGHUP:  # both are SIGINT or SIGTERM
            os._exit(128 + number)
        self.received = max(number, self.received)


@contextlib.contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Inside the block, SIGINT, SIGTERM and SIGHUP set the flag instead of ending the process."""
    stop = StopSignal()
    with _handlers(stop._receive):
        yield stop


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is removed after the block, also when a signal ends the process inside it."""
    temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with temporary as folder, deleted_on_failure(Path(folder)) as path:
        yield path


@contextlib.contextmanager
def exit_at_once() -> Iterator[None]:
    """Inside the block, Ctrl-C ends the process as SIGTERM does, without a KeyboardInterrupt.

    That may get lost in an import, and no file needs it: each is written whole or not at all.
    """
    with _handlers(signal.SIG_DFL):
        yield


@contextlib.contextmanager
def _handlers(handle: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP call `handle` inside the block."""
    # Python installs signal handlers in the main thread only; in any other thread the block just runs.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]
    if SIGHUP and signal.getsignal(SIGHUP) != signal.SIG_IGN:  # which nohup has set, to outlive a logout
        numbers.append(SIGHUP)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
