"""gptmini runs: the runs of a folder as a table, and the end of one of them."""

import os
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from gptmini import atomic_io
from gptmini.checkpoint.folders import find_runs
from gptmini.checkpoint.hf_gpt2 import config_from_gpt2
from gptmini.checkpoint.manifest import OPTIMIZER, STATE
from gptmini.checkpoint.safetensors_io import read_json
from gptmini.checkpoint.store import CheckpointStore
from gptmini.config import load_config
from gptmini.data.prepare import corpus_names
from gptmini.errors import UserError
from gptmini.lock import is_locked
from gptmini.schema import did_you_mean
from gptmini.training.estimate import count_parameters
from gptmini.training.log_files import LOG_FILES, MetricsLine
from gptmini.web.runs import LogTail

HEAD = ("run", "text", "parameters", "bits per byte", "when", "disk")
_LEFT = 2  # columns of text; the others are numbers, and end at one line
# What a step's folder holds, for one whose manifest is damaged.
_STEP_FILES = {
    STATE, OPTIMIZER, "model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip


def list_runs(folder: Path) -> Iterator[str]:
    """A line for each run in `folder`, the newest first; UserError where there is none."""
    runs = find_runs(folder)
    if not runs:
        raise UserError(f"{folder}: no runs there: gptmini train makes one, in train.out_dir")
    runs.sort(key=_last_change, reverse=True)
    rows = [HEAD, *map(_row, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(range(len(row)), row, widths, strict=True)
        yield "  ".join(f"{cell:{'<' if i < _LEFT else '>'}{width}}" for i, cell, width in cells).rstrip()


def _row(run: Path) -> tuple[str, ...]:
    when = datetime.fromtimestamp(_last_change(run)).strftime("%Y-%m-%d %H:%M")
    state = "running" if is_locked(run / ".lock") else when
    return run.name, _text(run), _parameters(run), _best(run), state, f"{_disk_bytes(run) / 1e6:,.1f} MB"


def _last_change(run: Path) -> float:
    metrics = run / "metrics.jsonl"
    return (metrics if metrics.exists() else run).stat().st_mtime


def _text(run: Path) -> str:
    try:
        names = corpus_names(load_config(run / "config.yaml").data)
    except (UserError, OSError):
        return "?"
    text = ", ".join(Path(name).name for name in names)
    return text if len(text) <= 40 else text[:37] + "..."


def _parameters(run: Path) -> str:
    store = CheckpointStore(run, keep=1)
    try:
        config = config_from_gpt2(read_json(store.path(store.steps()[-1]) / "config.json"))
    except (UserError, OSError, IndexError):  # no checkpoint yet, or a damaged one
        return "?"
    return f"{count_parameters(config):,}"


def _best(run: Path) -> str:
    _, lines = LogTail(run / "metrics.jsonl", MetricsLine).read()
    found = [line["bits_per_byte"] for line in lines if line["split"] == "val"]
    best = min((bits for bits in found if bits is not None), default=None)
    return "none yet" if best is None else f"{best:.4f}"


def _disk_bytes(run: Path) -> int:
    paths = (Path(parent, name) for parent, _, names in os.walk(run) for name in names)
    return sum(path.lstat().st_size for path in paths if os.path.lexists(path))


def delete_run(folder: Path, name: str, yes: bool) -> Iterable[str]:
    """Delete a run after a question; its lock is held, and files that are not of a run stay.

    Raises UserError where there is no such run, or no terminal to ask on; InUseError while it trains.
    """
    names = [run.name for run in find_runs(folder)]
    if name not in names:
        hint = did_you_mean(name, names) or f"; there are {', '.join(names)}" if names else ""
        raise UserError(f"{folder}: no run is called {name}{hint}")
    run = folder / name
    if run.is_symlink():
        raise UserError(f"{run}: is a link to a run elsewhere: delete that one, or the link, yourself")
    store = CheckpointStore(run, keep=1)
    with store.lock():
        if not (yes or _agrees(f"delete {run}, {_disk_bytes(run) / 1e6:,.1f} MB? y/N ")):
            return [f"{run}: kept"]
        store.clean()
        for step in store.steps():
            store.remove(store.path(step), _STEP_FILES)
        atomic_io.remove_files(run, _files_of_a_run(run), run)
    left = sorted(str(Path(parent, file)) for parent, _, files in os.walk(run) for file in files)
    return [f"{run}: deleted" + (f", but for what is no run's: {', '.join(left)}" if left else "")]


def _agrees(question: str) -> bool:
    if sys.stdin is None or not sys.stdin.isatty():
        raise UserError("--delete asks before it deletes, and there is no terminal to ask on: give --yes")
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _files_of_a_run(run: Path) -> set[str]:
    """What a run writes beside its checkpoints, earlier logs that it has set aside too."""
    stems = [Path(name).stem for name in LOG_FILES]
    logs = [path for stem in stems for path in run.glob(f"{stem}-*.jsonl")]
    aside = {path.name for path in logs if path.stem.rpartition("-")[2].isdecimal()}
    events = {f"tensorboard/{path.name}" for path in run.glob("tensorboard/events.out.tfevents.*")}
    return {"config.yaml", ".lock", *LOG_FILES, *aside, *events}
