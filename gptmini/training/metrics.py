"""What a run reports: metrics.jsonl for programs, the progress bar or plain lines for people."""

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gptmini.atomic_io import AppendOnlyLog, filter_lines
from gptmini.config import Config
from gptmini.training.trackers import Trackers


class Metrics:
    """Writes one JSON object a line, and shows progress: a bar on a terminal, plain lines elsewhere."""

    def __init__(
        self, path: Path, first_step: int, max_steps: int, tokens_per_step: int, quiet: bool
    ) -> None:
        """Open `path`, and samples.jsonl beside it, to go on after `first_step`.

        Later lines and a last one torn by a crash are dropped.
        """
        samples = path.with_name("samples.jsonl")
        for file in (path, samples):
            filter_lines(file, lambda line: _step_of(line) <= first_step)
        earlier = list(read_metrics(path))
        self._lines, self._samples = AppendOnlyLog(path), AppendOnlyLog(samples)
        self._trackers: Trackers | None = None
        self._latest = {line["split"]: line["loss"] for line in earlier}
        self._max_steps = max_steps
        self._tokens_per_step = tokens_per_step
        self._quiet = quiet
        self._started = time.perf_counter() - (earlier[-1]["elapsed_seconds"] if earlier else 0.0)
        self._steps, self._seconds = 0, 0.0  # since the last train line
        self._speed = ""
        self._bar = tqdm(
            total=max_steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            bar_format="step {n_fmt}/{total_fmt} |{bar}| {elapsed}, {remaining} left{postfix}",
            disable=quiet or not sys.stderr.isatty(),
        )

    def count_step(self, seconds: float) -> None:
        """Take note of a training step, for tokens per second and the bar."""
        self._steps += 1
        self._seconds += seconds
        self._bar.update()

    def log(
        self,
        step: int,
        split: str,
        loss: float,
        bits_per_byte: float,
        lr: float | None = None,
        grad_norm: float | None = None,
    ) -> None:
        """Write a line to metrics.jsonl and show it.

        loss is in nats per token; tokens counts training tokens since step 0; tokens_per_second is over the
        training steps since the last train line, and null in other lines, as are lr and grad_norm;
        elapsed_seconds runs on over all sessions of a run.
        """
        trained = split == "train" and self._steps > 0
        tokens_per_second = self._steps * self._tokens_per_step / self._seconds if trained else None
        line = {
            "step": step,
            "split": split,
            "loss": loss,
            "bits_per_byte": bits_per_byte,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens": step * self._tokens_per_step,
            "tokens_per_second": tokens_per_second and round(tokens_per_second, 1),
            "elapsed_seconds": round(time.perf_counter() - self._started, 3),
        }
        self._lines.append(json.dumps(line))
        if self._trackers is not None:
            self._trackers.log(step, split, line)
        speed = ""
        if tokens_per_second:
            speed = self._speed = f"{tokens_per_second:,.0f} tokens/s"
            self._steps, self._seconds = 0, 0.0
        self._latest[split] = loss
        losses = [
            f"{name} {self._latest[key]:.4f}"
            for name, key in (("loss", "train"), ("val", "val"))
            if key in self._latest
        ]
        self._bar.set_postfix_str(", ".join([*losses, self._speed]), refresh=False)
        if split != "train" or self._bar.disable:
            width = len(str(self._max_steps))
            text = f"step {step:{width}}/{self._max_steps}  {split:5}  loss {loss:.4f}"
            self.print(f"{text}  {bits_per_byte:.4f} bits/byte  {speed}".rstrip())

    def sample(self, step: int, text: str) -> None:
        """Write what the model writes now to samples.jsonl, and show it."""
        self._samples.append(json.dumps({"step": step, "text": text}))
        self.print(f"step {step} writes:\n{text}\n")

    def track(self, config: Config, run_folder: Path, first_step: int) -> None:
        """Send what is logged from now on to the trackers that the config names, too."""
        self._trackers = Trackers(config, run_folder, first_step, self._quiet, self.print)

    def print(self, text: str) -> None:
        """Show a line, above the bar where there is one."""
        if not self._quiet:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def sync(self) -> None:
        """Make what is logged so far outlive a power loss."""
        self._samples.sync()
        self._lines.sync()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._trackers is not None:
            self._trackers.close()
        self._bar.close()
        self._samples.close()
        self._lines.close()


class NoMetrics(Metrics):
    """What the ranks that do not write report: nothing."""

    def __init__(self, *settings: object) -> None:
        """Open no file."""

    def count_step(self, seconds: float) -> None:
        """Take no note."""

    def log(self, *figures: object) -> None:
        """Write nothing."""

    def sample(self, step: int, text: str) -> None:
        """Write nothing."""

    def track(self, config: Config, run_folder: Path, first_step: int) -> None:
        """Send nothing."""

    def print(self, text: str) -> None:
        """Show nothing."""

    def sync(self) -> None:
        """Nothing is to outlive a power loss."""

    def __exit__(self, *exception: object) -> None:
        pass


def _step_of(line: bytes) -> float:
    """The step of a line; infinite where a power loss has left something else than a line."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return math.inf


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a metrics.jsonl, in order; a torn last line is passed over."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)
