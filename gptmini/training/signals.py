"""Ctrl-C, SIGTERM and a closed terminal (SIGHUP): finish the step and save, or clean up and end."""

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

SIGHUP: int | None = getattr(signal, "SIGHUP", None)  # Windows has none


class StopSignal:
    """A flag that SIGINT (Ctrl-C), SIGTERM or SIGHUP sets; a second SIGINT or SIGTERM exits at once.

    That is safe at any instant, because every file is written whole or not at all. A terminal that closes
    sends SIGHUP more than once (the kernel, the shell), so that one never counts as the second.
    """

    def __init__(self) -> None:
        self.received = 0  # the number of the signal; 0: none so far

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == SIGHUP:
            self.received = self.received or number
        elif self.received in (0, SIGHUP):
            self.received = number
        else:
            os._exit(128 + number)


@contextlib.contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Inside the block, SIGINT, SIGTERM and SIGHUP set the flag instead of ending the process."""
    stop = StopSignal()
    with _handlers(stop._receive):
        yield stop


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is removed after the block, also when a signal ends the process inside it."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        contextlib.ExitStack() as handlers,
    ):

        def remove_and_raise(number: int, frame: FrameType | None) -> None:
            shutil.rmtree(folder, ignore_errors=True)
            handlers.close()
            signal.raise_signal(number)  # again, for the handler that was there before

        handlers.enter_context(_handlers(remove_and_raise))
        yield Path(folder)


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
