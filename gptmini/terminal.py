"""Standard output and standard error: control characters are shown, failures are named or survived."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

# All controls but tab and line feed; marks that change the direction of writing; Unicode's line separators.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with its control characters escaped, so that it cannot move the cursor or rename the window.

    >>> print(visible("a bell \\x07, red \\x1b[31m, a line\\nand é"))
    a bell \\x07, red \\x1b[31m, a line
    and é
    """
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


class _Nowhere(io.TextIOBase):
    """In place of a stream that was closed before this process began."""

    def write(self, text: str) -> int:
        return len(text)


class _Stream:
    """A text stream that escapes control characters on a terminal, and whose errors say which stream it is.

    With `may_fail`, what it cannot take is lost, and nothing is raised.
    """

    def __init__(
        self, stream: TextIO | _Nowhere, name: str, keep: str = "\n", *, may_fail: bool = False
    ) -> None:
        self._stream, self._name, self._keep, self._may_fail = stream, name, keep, may_fail
        self._has_failed = False

    def write(self, text: str) -> int:
        if self.isatty():
            text = self._keep.join(map(visible, text.split(self._keep)))
        # Of a model's characters the stream's encoding may lack some.
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with self._errors():
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with self._errors():
            self._stream.flush()

    def isatty(self) -> bool:
        return not self._stream.closed and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ValueError:  # the program itself has closed it
            if not self._may_fail:
                raise
        except OSError as error:
            if not self._may_fail:
                raise OSError(error.errno, error.strerror, self._name) from None
            if not self._has_failed:
                self._has_failed = True
                notice = f"{self._name}: {error.strerror}; the run continues without it"
                print(notice, file=sys.stderr, flush=True)


@contextlib.contextmanager
def guard_streams(*, may_fail: bool = False) -> Iterator[None]:
    """Inside, foreign text cannot control the terminal, and an OSError names the stream that failed.

    With `may_fail`, nothing is raised: for a run, which outlives a full disk, a closed terminal or pipe.
    """
    out = _Stream(sys.stdout or _Nowhere(), "standard output", may_fail=may_fail)
    # Progress bars return to the start of their line.
    err = _Stream(sys.stderr or _Nowhere(), "standard error", keep="\r", may_fail=may_fail)
    with contextlib.redirect_stdout(cast(TextIO, out)), contextlib.redirect_stderr(cast(TextIO, err)):
        yield


def occupy_closed_descriptors() -> None:
    """Keep a file that is opened later, such as a checkpoint's, from taking the number of a closed stream."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def discard_unwritten() -> None:
    """Drop what the two streams cannot take: at its end Python would try again, and exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):  # a stream that is no file has nothing to drop
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
