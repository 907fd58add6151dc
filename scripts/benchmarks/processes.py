"""Training runs as processes of their own: their commands, configs, corpora and metrics."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent.parent
TRAIN = [sys.executable, str(ROOT / "scripts" / "train.py")]
# Followed by the number of ranks.
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def write_words(path: Path, size: int) -> None:
    """Write about `size` bytes of text made of random words."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    args = np.array(["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(5000)], dtype=object)
    with path.open("w", encoding="utf-8") as file:
        written = 0
        while written < size:
            written += file.write(" ".join(args[rng.integers(len(args), size=2000)]) + "\n\n")


def write_config(config: dict[str, dict[str, object]], folder: Path) -> str:
    """Write a config file with these sections; returns its path."""
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return str(path)


def run(command: Sequence[str], cwd: Path | None = None) -> str:
    """A command's standard output; ends the benchmark if it fails."""
    result = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {result.returncode}")
    return result.stdout


def metrics(run_folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def format_numbers(values: Sequence[float]) -> str:
    """Numbers with one decimal, separated by commas."""
    return ", ".join(f"{value:.1f}" for value in values)
