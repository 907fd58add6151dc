"""Paths as users give them: `~` is the home folder, and what no file system takes is refused."""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from gptmini.errors import UserError


def check_path(path: str) -> str:
    """The path with its `~` expanded; UserError where no file can have it."""
    if not path or "\0" in path:
        raise UserError(f"{path!r}: is no path")
    names = re.split(r"[/\\]", path)
    if len(path) > 4000 or max(len(name.encode(errors="surrogatepass")) for name in names) > 255:
        raise UserError(f"{path[:60]!r}... ({len(path)} characters): is too long for a path")
    return os.path.expanduser(path)


def path_argument(value: object, needed: str = "a path is needed") -> Path:
    """A path given to a public function, `~` expanded; UserError where it is none, with what is needed."""
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{needed}, not {type(value).__name__}")
    return Path(check_path(os.fspath(value)))


PathText = Annotated[
    str,
    Field(pattern=r"^[^\x00]+$", json_schema_extra={"format": "path"}),
    AfterValidator(check_path),  # for every path in a file or an option
]
