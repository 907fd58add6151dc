"""The lock on a folder that one process at a time may write in; filelock takes it."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gptmini.atomic_io import make_folder
from gptmini.errors import InUseError


@contextmanager
def lock(path: Path, what: str, waiting: str | None = None) -> Iterator[Callable[[], None]]:
    """Hold the lock file at `path`, in a folder that is made if missing, for the length of the block.

    If another process holds it, raises InUseError naming `what`; or, with `waiting`, prints that line (if it
    is not empty) and waits. Raises OSError where the file cannot be opened, or is a symbolic link. Yields a
    function that raises OSError if the locked file is no longer at `path`: it or its folder was moved or
    removed, and another process may now hold a lock of the same name.
    """
    from filelock import FileLock, Timeout  # here, because importing it takes 0.1 s

    make_folder(path.parent)
    # A soft lock, filelock's fallback on filesystems without flock, would outlive its process. A real one is
    # freed by the operating system, however the process ends; the file itself stays and means nothing.
    # `is_locked` may hold it for an instant: that is waited out.
    file_lock = FileLock(path, timeout=0.1, thread_local=False, fallback_to_soft=False)
    try:
        file_lock.acquire()
    except Timeout:
        if waiting is None:
            raise InUseError(f"{what} is in use by another process: wait for it, or choose another") from None
        if waiting:
            print(waiting, file=sys.stderr)
        file_lock.acquire(timeout=-1)
    try:
        locked = path.stat()  # the open lock file keeps its inode from being reused

        def check() -> None:
            if not (path.exists() and os.path.samestat(locked, path.stat())):
                raise OSError(errno.ESTALE, f"{what} was removed or moved while in use", str(path))

        yield check
    finally:
        file_lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file at `path`: one that is free is taken for an instant."""
    from filelock import FileLock, Timeout

    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False):
            return False
    except Timeout:
        return True
    except OSError:  # another user's: nothing says it
        return False
