"""What a folder is: a run, one step's checkpoint, or neither; and which runs there are."""

from pathlib import Path

from gptmini.checkpoint.manifest import MANIFEST, STATE


def is_step_folder(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a run, be it damaged, and not any GPT-2 directory."""
    return (folder / MANIFEST).exists() or (folder / STATE).exists()


def is_run_folder(folder: Path) -> bool:
    """Whether a folder has checkpoints in it, and is not one of them in which others left files."""
    return (folder / "checkpoints").is_dir() and not (folder / STATE).exists()


def holds_checkpoint(folder: Path) -> bool:
    """Whether a step's folder is more than what others left in it."""
    return is_step_folder(folder) or (folder / "model.safetensors").exists()


def find_runs(folder: Path) -> list[Path]:
    """The runs in a folder, those that have saved nothing yet too, by name; none where it cannot be read."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if is_run_folder(path) or ((path / "config.yaml").is_file() and (path / "metrics.jsonl").is_file())
    )


def runs_there_are(path: Path) -> str:
    """`; runs there: ...`, for the error that a folder does not exist: those beside it, else in runs/."""
    runs = find_runs(path.parent) or find_runs(Path("runs"))
    more = f" and {len(runs) - 8} more" if len(runs) > 8 else ""
    return f"; runs there are: {', '.join(map(str, runs[:8]))}{more}" if runs else ""
