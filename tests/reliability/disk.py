"""Disks for the checkpoint tests: one that fails at a chosen operation, and one that loses power.

`Disk` stands in for the `os` module inside gptmini.atomic_io, where every change of a file passes
through. It does the real operations, keeps a log of them, and gives a chosen one to a fault. `replay` and
`after_power_loss` turn such a log into the states in which a disk may be found when the power went.
"""

import os
import signal
from contextlib import contextmanager
from pathlib import Path

from gptmini import atomic_io

OPERATIONS = ("open", "write", "fsync", "close", "replace", "rename", "mkdir", "unlink", "rmdir")


class Disk:
    """The os module, with `fault(name, call, args)` in place of operation number `at` (and later ones)."""

    def __init__(self, fault=None, at=None, for_good=False):
        self.log = []
        self.fault, self.at, self.for_good = fault, at, for_good

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in OPERATIONS:
            return real
        if name == "fsync":
            real = self._no_wait  # what is synced is in the log; waiting for the real disk proves nothing
        return lambda *args: self._operate(name, real, args)

    def _no_wait(self, file):
        os.fstat(file)

    def _operate(self, name, call, args):
        number = len(self.log)
        self.log.append((name, tuple(bytes(a) if isinstance(a, memoryview) else a for a in args), None))
        if self.at is not None and (number == self.at or (self.for_good and number > self.at)):
            return self.fault(name, call, args)
        result = call(*args)
        self.log[number] = (*self.log[number][:2], result)
        return result

    @contextmanager
    def under(self, module=atomic_io):
        """Put this disk under atomic_io for the length of the block."""
        module.os = self
        try:
            yield self
        finally:
            module.os = os


def kill(name, call, args):
    """The process dies before the operation."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_inside(name, call, args):
    """The process dies when half of a write is done; other operations are done or not."""
    if name == "write":
        file, data = args
        call(file, data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def failing(number):
    """A fault: the operation fails with this errno."""

    def fail(name, call, args):
        if name == "close":
            call(*args)
        raise OSError(number, os.strerror(number))

    return fail


def short_write(name, call, args):
    """A write takes part of the data only, as the standard allows."""
    if name == "write":
        file, data = args
        return call(file, data[: max(1, len(data) // 2)])
    return call(*args)


def lie(name, call, args):
    """A write that changes a byte on its way to the disk, and reports success."""
    if name == "write":
        file, data = args
        return call(file, bytes([data[0] ^ 1]) + bytes(data[1:]))
    return call(*args)


class _File:
    def __init__(self):
        self.data, self.synced = b"", b""


class _Folder:
    def __init__(self):
        self.names = {}  # as programs see it
        self.synced = {}  # as it stands on the disk for certain
        self.pending = []  # changes that may or may not have reached the disk


def replay(log, root):
    """The disk after the operations of `log`, as a _Folder that stands for `root`, an empty folder before."""
    top, open_files = _Folder(), {}

    def parent_and_name(path):
        *above, name = Path(path).relative_to(root).parts
        folder = top
        for part in above:
            folder = folder.names[part]
        return folder, name

    def change(folder, names):
        folder.pending.append(names)
        folder.names.update(names)
        for name in [name for name, node in names.items() if node is None]:
            del folder.names[name]

    for name, args, result in log:
        if name == "open":
            if Path(args[0]) == root:
                open_files[result] = top
                continue
            folder, file = parent_and_name(args[0])
            if file not in folder.names:
                change(folder, {file: _File()})
            open_files[result] = folder.names[file]
        elif name == "write":
            open_files[args[0]].data += args[1][:result]
        elif name == "fsync":
            node = open_files[args[0]]
            if isinstance(node, _File):
                node.synced = node.data
            else:
                node.synced, node.pending = dict(node.names), []
        elif name in ("rename", "replace"):
            (folder, old), (target, new) = parent_and_name(args[0]), parent_and_name(args[1])
            assert folder is target, "the model knows renames within a folder only"
            change(folder, {old: None, new: folder.names[old]})
        elif name == "mkdir":
            folder, made = parent_and_name(args[0])
            change(folder, {made: _Folder()})
        elif name in ("unlink", "rmdir"):
            folder, gone = parent_and_name(args[0])
            change(folder, {gone: None})
    return top


def after_power_loss(folder, rng, keep):
    """One state that the disk may be found in, as nested dicts of bytes.

    Of a file, what was not synced is there, cut at any byte, zeroed, or missing; of a folder, each change of
    a name that was not synced happened or did not, whatever the others did. `keep` is the fraction that did.
    """
    found = dict(folder.synced)
    for change in folder.pending:
        if rng.random() < keep:
            found.update(change)
    return {
        name: after_power_loss(node, rng, keep) if isinstance(node, _Folder) else _file_after(node, rng, keep)
        for name, node in found.items()
        if node is not None
    }


def _file_after(file, rng, keep):
    unsynced = file.data[len(file.synced) :]
    if rng.random() < keep or not unsynced:
        return file.data
    cut = rng.randrange(len(unsynced) + 1)
    zeros = bytes(len(unsynced))
    torn = [b"", unsynced[:cut], zeros, unsynced[:cut] + zeros[cut:], zeros[:cut] + unsynced[cut:]]
    return file.synced + rng.choice(torn)


def put(tree, folder):
    """Make nested dicts of bytes a real folder."""
    folder.mkdir()
    for name, node in tree.items():
        if isinstance(node, dict):
            put(node, folder / name)
        else:
            (folder / name).write_bytes(node)
