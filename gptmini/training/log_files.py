"""metrics.jsonl and samples.jsonl: one JSON object a line, with a checksum, written and read here only."""

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

from pydantic import Field

from gptmini.atomic_io import filter_lines, rename
from gptmini.errors import DamagedError
from gptmini.schema import Section

TIMES = ("tokens_per_second", "elapsed_seconds")  # no two runs agree on them


class SampleLine(Section):
    """A line of samples.jsonl."""

    step: int = Field(ge=0, lt=2**63)
    text: str


class MetricsLine(Section):
    """A line of metrics.jsonl; a number that is not finite is read as null."""

    step: int = Field(ge=0, lt=2**63)
    split: Literal["train", "val"]
    loss: float | None
    bits_per_byte: float | None
    lr: float | None
    grad_norm: float | None
    tokens: int = Field(ge=0, lt=2**63)
    tokens_per_second: float | None
    elapsed_seconds: float


LOG_FILES: dict[str, type[Section]] = {"samples.jsonl": SampleLine, "metrics.jsonl": MetricsLine}


def format_line(values: Mapping[str, Any]) -> str:
    """The line that holds these values, without its line end.

    >>> format_line({"step": 2, "text": "Once"})
    '{"step": 2, "text": "Once", "crc32": "87e0133a"}'
    """
    return json.dumps({**values, "crc32": _checksum(values)})


def parse_line(line: bytes, schema: type[Section]) -> dict[str, Any] | None:
    """The values of a line, or None if no run wrote it. Earlier versions wrote no checksum."""
    try:
        values = json.loads(line.decode())
        checksum = values.pop("crc32", None)
        if checksum not in (None, _checksum(values)):
            return None
        if checksum:  # a later version may have more keys
            values = {key: values[key] for key in schema.model_fields}
        for key, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                values[key] = None
        return schema.model_validate(values).model_dump()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


class LineParser:
    """`parse_line` for the lines of one file in order: none stands twice, and steps rise.

    So a line that was repeated, moved or added without a checksum counts as one that no run wrote.
    """

    def __init__(self, schema: type[Section]) -> None:
        self.schema = schema
        self.last: tuple[int, str] = (-1, "")  # step and split; at one step, train comes before val
        self.has_checksums = False

    def __call__(self, line: bytes) -> dict[str, Any] | None:
        """The values of the next line, or None."""
        values = parse_line(line, self.schema)
        if values is None:
            return None
        place, has_checksum = (values["step"], values.get("split", "")), b'"crc32"' in line
        if place <= self.last or (self.has_checksums and not has_checksum):
            return None
        self.last, self.has_checksums = place, has_checksum
        return values


def _checksum(values: Mapping[str, Any]) -> str:
    """CRC-32 of the values as JSON; without the times, so that equal runs write equal checksums."""
    values = {key: value for key, value in values.items() if key not in TIMES}
    text = json.dumps(values, ensure_ascii=False)  # half a surrogate pair cannot be encoded: ValueError
    return f"{crc32(text.encode()):08x}"


def read_log(path: Path, schema: type[Section]) -> Iterator[dict[str, Any]]:
    """The lines of a file, without a torn last one; DamagedError names the first that no run wrote."""
    if not path.exists():
        return
    if not path.is_file():  # a pipe would make the reader wait for ever
        raise DamagedError(f"{path}: not a regular file")
    parse = LineParser(schema)
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):  # a running process is still writing it
                return
            values = parse(line)
            if values is None:
                raise DamagedError(f"{path}: line {number} is not what a run writes")
            yield values


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl, as `read_log`."""
    return read_log(path, MetricsLine)


def drop_lines(path: Path, schema: type[Section], last_step: int) -> int:
    """Drop the lines after `last_step` and those that no run wrote; returns the number of the latter."""
    foreign, parse = 0, LineParser(schema)

    def keep(line: bytes) -> bool:
        nonlocal foreign
        values = parse(line)
        foreign += values is None
        return values is not None and values["step"] <= last_step

    filter_lines(path, keep)
    return foreign


def set_aside(path: Path) -> None:
    """Rename a file to the first free name of metrics-1.jsonl, metrics-2.jsonl, ..., unless it is empty."""
    with suppress(FileNotFoundError):
        if os.path.getsize(path):
            names = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(1))
            taken = set(os.listdir(path.parent))  # os.path.lexists would call free what cannot be looked at
            rename(path, next(name for name in names if name.name not in taken))
