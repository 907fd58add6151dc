"""What a folder is: a run, one step's checkpoint, or neither; and which runs there are."""

from pathlib import Path

from gptmini.checkpoint.manifest import MANIFEST, STATE
from gptmini.errors import UserError


def is_step_folder(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a run, be it damaged, and not any GPT-2 directory."""
    return (folder / MANIFEST).exists() or (folder / STATE).exists()


def is_run_folder(folder: Path) -> bool:
    """Whether a folder has checkpoints in it, and is not one of them in which others left files."""
    return (folder / "checkpoints").is_dir() and not (folder / STATE).exists()


def holds_checkpoint(folder: Path) -> bool:
    """Whether a step's folder is more than what others left in it."""
    return is_step_folder(folder) or (folder / "model.safetensors").exists()


def is_begun_run(folder: Path) -> bool:
    """Whether a folder is a run, be it one that has saved nothing yet."""
    return is_run_folder(folder) or all((folder / n).is_file() for n in ("config.yaml", "metrics.jsonl"))


def find_runs(folder: Path) -> list[Path]:
    """The runs in a folder, by name; none where it cannot be read."""
    return sorted(filter(is_begun_run, folder.iterdir())) if folder.is_dir() else []


def runs_there_are(path: Path) -> str:
    """`; runs there: ...`, for the error that a folder does not exist: those beside it, else in runs/."""
    runs = find_runs(path.parent) or find_runs(Path("runs"))
    more = f" and {len(runs) - 8} more" if len(runs) > 8 else ""
    return f"; runs there are: {', '.join(map(str, runs[:8]))}{more}" if runs else ""


def no_such_folder(path: Path) -> UserError:
    """The error for a checkpoint whose folder does not exist."""
    needed = "give a run folder, a step's folder or a GPT-2 directory"
    return UserError(f"{path}: no such folder: {needed}{runs_there_are(path)}")
