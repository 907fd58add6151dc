"""Read a run folder: config, metrics, samples, environment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptmini.checkpoint.folders import runs_there_are
from gptmini.checkpoint.store import CheckpointStore
from gptmini.config import Config, load_config
from gptmini.errors import UserError
from gptmini.training.log_files import SampleLine, read_log, read_metrics


class Run(NamedTuple):
    """The contents of a run folder."""

    name: str
    folder: Path
    config: Config
    metrics: list[dict[str, Any]]  # the lines of metrics.jsonl
    samples: list[dict[str, Any]]  # the lines of samples.jsonl: step and text
    environment: dict[str, Any]  # versions and machine of the newest checkpoint; empty without one
    data_digest: str | None  # of the tokens it was trained on


def read_runs(folders: Sequence[str]) -> list[Run]:
    """The runs in these folders, under distinct names; UserError for a folder that holds none."""
    paths = [Path(folder) for folder in folders]
    names = [path.resolve().name for path in paths]
    named = [str(path) if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
    if len(set(named)) < len(named):
        raise UserError(f"the same run is given twice: {' '.join(folders)}")
    return [_read_run(name, path) for name, path in zip(named, paths, strict=True)]


def _read_run(name: str, folder: Path) -> Run:
    if not (folder / "config.yaml").is_file() or not (folder / "metrics.jsonl").is_file():
        others = "" if folder.exists() else runs_there_are(folder)
        needed = "it needs the config.yaml and metrics.jsonl of a run"
        raise UserError(f"{folder}: not a run folder: {needed}{others}")
    state = CheckpointStore(folder, keep=1).newest_state()
    return Run(
        name,
        folder,
        load_config(folder / "config.yaml"),
        list(read_metrics(folder / "metrics.jsonl")),
        list(read_log(folder / "samples.jsonl", SampleLine)),
        state.environment if state else {},
        state.data_digest if state else None,
    )
