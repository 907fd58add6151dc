"""The only file writes of the package: after a crash, every file is whole or absent.

A file or folder is made under a temporary name beside its own, synced, and renamed in one step; then the
folder that holds the name is synced, because only an fsync makes data or a name survive a power loss.
"""

import errno
import os
import re
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

_TEMPORARY = ".gptmini-tmp-{name}-{hex}"  # a name that nobody else gives; the first runs began it by .tmp-
_BINARY: int = getattr(os, "O_BINARY", 0)  # Windows would translate line ends without it
NOT_WHOLE = "was not written whole; is the disk full?"
Bytes = bytes | bytearray | memoryview


def write_file(path: Path, data: Bytes | Iterable[Bytes]) -> None:
    """Put `data`, or its chunks, at `path`, replacing what is there in one step; OSError names `path`.

    What was there before stays after an error, unless it is in the sync of the folder itself.
    """
    if path.exists() and not path.is_file():  # such as /dev/null, which root could replace
        raise OSError(errno.EINVAL, "is no file that could be replaced", str(path))
    with _temporary(path) as temporary:
        create_file(temporary, data)
        with _errors_name_path(path):  # readers see the old file or the new one, never a mixture
            os.replace(temporary, path)
            _sync_folder(path.parent)


def create_file(path: Path, data: Bytes | Iterable[Bytes]) -> None:
    """Put `data` into a new file at `path` and sync it.

    A crash can leave half of it: this is for the files in a `new_folder`, which becomes visible as a whole.
    Raises OSError naming `path` and the cause; FileExistsError if `path` exists.
    """
    with _errors_name_path(path):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
    try:
        for chunk in [data] if isinstance(data, Bytes) else data:  # an iterator's error stays its own
            with _errors_name_path(path):
                _write_all(file, chunk)
        with _errors_name_path(path):
            _sync(file)
    finally:
        with _errors_name_path(path):
            os.close(file)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file that appears at `path` whole or not at all, for packages that write by themselves.

    Yields a temporary name beside `path`, where the block writes the file, reads it back, and raises if it is
    not whole. What a killed process left of the same file is removed first. Raises OSError naming `path`.
    """
    clean_leftovers(path.parent, re.escape(path.name[:40]))
    with _temporary(path) as temporary:
        try:
            yield temporary
        except OSError as error:
            # numpy's has neither number nor cause
            raise OSError(error.errno or errno.EIO, error.strerror or NOT_WHOLE, str(path)) from error
        with _errors_name_path(path):
            file = os.open(temporary, os.O_RDWR | _BINARY)
            try:
                _sync(file)
            finally:
                os.close(file)
            os.replace(temporary, path)
            _sync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears at `path` whole or not at all.

    Yields a temporary folder beside `path`, to be filled with `create_file`. When the block ends well, it is
    synced from the inside out, renamed, and the parent synced; on any failure it is removed. What a killed
    process left of the same folder is removed first. Raises FileExistsError or OSError, which name `path`.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "exists already", str(path))
    clean_leftovers(path.parent, re.escape(path.name[:40]))
    with _temporary(path) as temporary:
        with _errors_name_path(path):
            os.mkdir(temporary)
        yield temporary
        sync_folders(temporary)
        with _errors_name_path(path):
            os.rename(temporary, path)
    # The new name must survive a power loss before older checkpoints are removed.
    try:
        with _errors_name_path(path):
            _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            remove_folder(path)
        raise


def make_folder(path: Path) -> None:
    """Make a folder and the missing ones above it, each name synced; one that exists is left as it is."""
    missing = [folder for folder in (path, *path.parents) if not os.path.isdir(folder)]
    for folder in reversed(missing):
        with _errors_name_path(folder):
            try:
                os.mkdir(folder)
            except FileExistsError:
                if not os.path.isdir(folder):  # another process made it first
                    raise
            _sync_folder(folder.parent)


def rename(path: Path, target: Path) -> None:
    """Rename a file or folder within its folder, for good: what is deleted then is not named any more."""
    with _errors_name_path(path):
        os.rename(path, target)
        _sync_folder(path.parent)


def sync_folders(path: Path) -> None:
    """Make the names in a folder, and in those below it, survive a power loss."""
    with _errors_name_path(path):
        for name in os.listdir(path):
            if os.path.isdir(path / name) and not os.path.islink(path / name):
                sync_folders(path / name)
        _sync_folder(path)


def remove_files(folder: Path, names: Collection[str], path: Path) -> None:
    """Delete these files of a folder, not what links point to, and each folder left empty, itself too.

    A folder that is a link itself is deleted as one. An OSError names `path`, under which the user knows it.
    """

    def fail(error: OSError) -> None:
        raise error

    with _errors_name_path(path):
        if os.path.islink(folder):
            os.unlink(folder)
            return
        for parent, _, files in os.walk(folder, topdown=False, onerror=fail):
            for file in files:
                if Path(parent, file).relative_to(folder).as_posix() in names:
                    os.unlink(Path(parent, file))
            if os.listdir(parent):
                _sync_folder(parent)
            else:
                os.rmdir(parent)


def remove_folder(path: Path) -> None:
    """Remove a folder so that a crash never leaves part of it under its name."""
    temporary = _temporary_name(path)
    rename(path, temporary)
    with _errors_name_path(path):
        _delete(temporary)


def clean_leftovers(folder: Path, names: str) -> None:
    """Delete what killed processes left in `folder` of files and folders called `names`, a regex.

    Only for a folder in which no other process can be writing: hold its lock.
    """
    leftover = re.compile(rf"\.(gptmini-)?tmp-({names})-[0-9a-f]{{8}}")
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if leftover.fullmatch(name):
            with _errors_name_path(folder / name):
                _delete(folder / name)


class AppendOnlyLog:
    """A text file that only grows, by whole lines: metrics.jsonl, samples.jsonl.

    A line is in the kernel's hands when `append` returns, so it outlives this process; after `sync` it
    outlives a power loss. A crash can leave a torn last line: `filter_lines` drops it.
    """

    def __init__(self, path: Path):
        self._path = path
        with _errors_name_path(path):
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _BINARY, 0o666)
            _sync_folder(path.parent)

    def append(self, line: str) -> None:
        """Write one line; the line end is added."""
        with _errors_name_path(self._path):
            _write_all(self._file, line.encode() + b"\n")

    def sync(self) -> None:
        """Make every line so far survive a power loss; call it before the checkpoint that relies on them."""
        with _errors_name_path(self._path):
            _sync(self._file)

    def close(self) -> None:
        """Close the file."""
        with _errors_name_path(self._path):
            os.close(self._file)


def filter_lines(path: Path, keep: Callable[[bytes], bool]) -> None:
    """Rewrite a file with the lines for which `keep(line)` is true; the line comes with its line end.

    A last line without a line end was torn by a crash and is always dropped. A missing file stays missing.
    """
    with suppress(FileNotFoundError), open(path, "rb") as lines:
        write_file(path, (line for line in lines if line.endswith(b"\n") and keep(line)))


def _write_all(file: int, data: Bytes) -> None:
    """One write may take only part of the data: near a full disk, at a signal, or above 2 GiB."""
    rest = memoryview(data).cast("B")
    while rest:
        written = os.write(file, rest)
        if written == 0:
            raise OSError(errno.EIO, "the disk takes no more bytes")
        rest = rest[written:]


def _sync(file: int) -> None:
    """Sync once: where that fails, the kernel may have dropped the data, and a second try would succeed."""
    if sys.platform == "darwin":  # there, fsync leaves the data in the drive's cache
        import fcntl

        try:
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno != errno.ENOTSUP:  # a network drive has only fsync
                raise
    os.fsync(file)


def _sync_folder(path: str | Path) -> None:
    """Make the names in a folder survive a power loss."""
    if sys.platform == "win32":  # folders cannot be opened there; NTFS journals names itself
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        _sync(folder)
    finally:
        os.close(folder)


def _delete(path: Path) -> None:
    """Remove a file, a link (not what it points to) or a folder with all that is in it."""
    if os.path.isdir(path) and not os.path.islink(path):
        for name in os.listdir(path):
            _delete(path / name)
        os.rmdir(path)
    else:
        os.unlink(path)


def _temporary_name(path: Path) -> Path:
    return path.parent / _TEMPORARY.format(name=path.name[:40], hex=secrets.token_hex(4))


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A temporary name for what will stand at `path`, which errors of the block name in its place."""
    temporary = _temporary_name(path)
    with deleted_on_failure(temporary):
        try:
            yield temporary
        except OSError as error:
            # a system call's error has a file name, one of ours a text
            if isinstance(error.filename, str):
                error.filename = error.filename.replace(str(temporary), str(path))
            error.args = tuple(
                a.replace(str(temporary), str(path)) if isinstance(a, str) else a for a in error.args
            )
            raise


@contextmanager
def deleted_on_failure(path: Path) -> Iterator[Path]:
    """Yields `path`; what stands there when the block fails, or a signal ends the process, is deleted."""

    def delete_and_end(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            _delete(path)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    # Only where a signal would end the process here and now: training catches signals, and saves first.
    ending = []
    if threading.current_thread() is threading.main_thread():
        numbers = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
        ending = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in ending:
        signal.signal(number, delete_and_end)
    try:
        yield path
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            _delete(path)
        raise
    finally:
        for number in ending:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _errors_name_path(path: Path) -> Iterator[None]:
    """Give an OSError of the block the path that the user knows, in place of another one or none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
