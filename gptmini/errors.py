"""The errors that end a command, one class per exit code. The message is the one line that is printed."""

import errno
import sys


class UserError(ValueError):
    """A bad config, argument or input: what was given, what is needed, what to do."""

    exit_code = 2


class MissingPackageError(UserError):
    """An optional package is not installed; the message says how to install it for this interpreter."""

    def __init__(self, what: str, package: str) -> None:
        super().__init__(f"{what} needs {package}: {sys.executable} -m pip install {package}")


class DivergedError(ArithmeticError):
    """The loss or the gradient norm is NaN or infinite; the weights were not updated."""

    exit_code = 3


class DamagedError(OSError):
    """A checkpoint or token file is not what was written: a wrong digest, size or shape."""

    exit_code = 4


class InUseError(OSError):
    """Another process is training in this run folder."""

    exit_code = 5


class LostRankError(ConnectionError):
    """Another rank of the same run has exited, hangs, or cannot be reached."""

    exit_code = 1


class OutOfMemoryError(MemoryError):
    """The machine has too little memory, or starts no more threads."""

    exit_code = 1


class Stopped(Exception):
    """A signal stopped training, and a checkpoint was saved."""

    exit_code = 75


# Not the user's fault, so exit code 1.
_MACHINE_ERRORS = {
    *(errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOLCK),
}


def is_machine_error(error: Exception) -> bool:
    """Whether the machine has failed: what it could not read may be there, and whole."""
    return isinstance(error, OSError) and error.errno in _MACHINE_ERRORS


def path_error(source: object, error: Exception, problem: str = "cannot be read") -> Exception:
    """The error to raise where a path of the user's fails: UserError, or OSError of the machine's own."""
    if isinstance(error, OSError) and is_machine_error(error):
        return OSError(error.errno, error.strerror, str(source))
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"{source}: {problem}: {' '.join(reason.split())}")
