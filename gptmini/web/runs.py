"""What a run folder says while its run goes on, and the table of all runs."""

import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from gptmini.checkpoint.store import CheckpointStore
from gptmini.config import load_config
from gptmini.lock import is_locked
from gptmini.schema import Section
from gptmini.training.log_files import LineParser, MetricsLine, SampleLine

MAX_TRAIN_LINES = 2000  # of the past, for the curves: a screen has no more columns
_PACE_LINES = 20  # the last train lines, from which the time left follows

Event = tuple[str, Any]  # its name, and what JSON can hold


class LogTail:
    """The lines of a log, each once, as the file grows: a stat, then what was appended."""

    def __init__(self, path: Path, schema: type[Section]) -> None:
        self.path, self.schema = path, schema
        self._file: tuple[int, int] | None = None  # its device and inode, when it was read last
        self._offset = 0
        self._parse = LineParser(schema)

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether the file was replaced, as a resumed run does, and the whole lines that are new since."""
        try:
            status = self.path.stat()
        except OSError:
            return False, []
        if not stat.S_ISREG(status.st_mode):  # a pipe would make the reader wait for ever
            return False, []
        file = (status.st_dev, status.st_ino)
        replaced = self._file is not None and (file != self._file or status.st_size < self._offset)
        if replaced:
            self._offset, self._parse = 0, LineParser(self.schema)
        self._file = file
        if status.st_size == self._offset:
            return replaced, []
        with open(self.path, "rb") as log:
            log.seek(self._offset)
            data = log.read(status.st_size - self._offset)
        whole = data[: data.rfind(b"\n") + 1]  # the run may be writing the last one
        self._offset += len(whole)
        parsed = map(self._parse, whole.splitlines(keepends=True))
        return replaced, [values for values in parsed if values is not None]


class RunReader:
    """A run, followed: what is new in it since it was last asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metrics = LogTail(folder / "metrics.jsonl", MetricsLine)
        self._samples = LogTail(folder / "samples.jsonl", SampleLine)
        self._forget()

    def _forget(self) -> None:
        self._train: list[dict[str, Any]] = []  # the last train lines
        self._best: dict[str, Any] | None = None
        self._state: dict[str, Any] | None = None

    def events(self) -> Iterator[Event]:
        """`restart` where all lines so far are void; `metrics` and `samples`, lists of lines; `state`."""
        replaced, metrics = self._metrics.read()
        other, samples = self._samples.read()
        if replaced or other:  # both are replaced together, one after the other
            fresh = RunReader(self.folder)
            self.__dict__ = fresh.__dict__
            yield "restart", {}
            yield from self.events()
            return
        if metrics:
            self._note(metrics)
            yield "metrics", _thin(metrics)
        if samples:
            yield "samples", samples
        state = self._describe()
        if state != self._state:
            self._state = state
            yield "state", state

    def _note(self, metrics: list[dict[str, Any]]) -> None:
        train = [line for line in metrics if line["split"] == "train"]
        self._train = [*self._train, *train][-_PACE_LINES:]
        val = [line for line in metrics if line["split"] == "val" and line["loss"] is not None]
        known = [self._best] if self._best else []
        self._best = min([*known, *val], key=lambda line: line["loss"], default=None)

    def _describe(self) -> dict[str, Any]:
        max_steps = _max_steps(self.folder)
        last = self._train[-1] if self._train else None
        step = last["step"] if last else 0
        running = is_locked(self.folder / ".lock")
        left = None
        if running and max_steps and len(self._train) > 1:
            first, last = self._train[0], self._train[-1]
            seconds = last["elapsed_seconds"] - first["elapsed_seconds"]
            left = round(max(0.0, (max_steps - step) * seconds / (last["step"] - first["step"])), 1)
        best = self._best and {key: self._best[key] for key in ("step", "loss", "bits_per_byte")}
        return {
            "running": running,
            "step": step,
            "max_steps": max_steps,
            "seconds_left": left,
            "tokens_per_second": last and last["tokens_per_second"],
            "elapsed_seconds": last and last["elapsed_seconds"],
            "checkpoints": CheckpointStore(self.folder, keep=1).steps(),
            "best": best,
        }


def _max_steps(folder: Path) -> int | None:
    """What the config says; None until the run has written it."""
    path = folder / "config.yaml"
    try:
        return _read_max_steps(path, path.stat().st_mtime_ns)
    except (ValueError, OSError):
        return None


@lru_cache(maxsize=64)  # reading YAML each second would be most of what a watched run costs
def _read_max_steps(path: Path, changed: int) -> int:
    return load_config(path).train.max_steps


def _thin(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All validation lines, and evenly chosen train lines, the last among them."""
    every = sum(line["split"] == "train" for line in lines) // MAX_TRAIN_LINES + 1
    newest_first = lines[::-1]
    seen, kept = 0, []
    for line in newest_first:
        if line["split"] != "train" or seen % every == 0:
            kept.append(line)
        seen += line["split"] == "train"
    return kept[::-1]
