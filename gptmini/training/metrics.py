"""What a run reports: metrics.jsonl for programs, a progress bar or plain lines for people."""

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
    """Writes one JSON object a line, and shows progress: a bar on a terminal, plain lines elsewhere.

    With `enabled=False`, as on every rank but the main one, it opens no file and prints nothing.
    """

    def __init__(
        self,
        path: Path,
        first_step: int,
        max_steps: int,
        tokens_per_step: int,
        quiet: bool,
        enabled: bool = True,
    ) -> None:
        """Open `path`, and samples.jsonl beside it, to append after `first_step`."""
        self._enabled = enabled
        if not enabled:
            return
        self._run_dir, self._first_step, self._max_steps = path.parent, first_step, max_steps
        self._tokens_per_step, self._quiet = tokens_per_step, quiet

        # Drop the lines of steps that a resumed run takes again, and a last line torn by a crash.
        samples = path.with_name("samples.jsonl")
        for file in (path, samples):
            filter_lines(file, lambda line: _step_of(line) <= first_step)
        earlier = list(read_metrics(path))
        self._lines, self._samples = AppendOnlyLog(path), AppendOnlyLog(samples)
        self._trackers: Trackers | None = None

        self._latest_loss = {line["split"]: line["loss"] for line in earlier}
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

    def start_trackers(self, config: Config) -> None:
        """Send what is logged from now on to the trackers in `train.trackers` too."""
        if self._enabled:
            first, quiet = self._first_step, self._quiet
            self._trackers = Trackers(config, self._run_dir, first, quiet, self.print)

    def count_step(self, seconds: float) -> None:
        """Count an optimizer step, for tokens per second and the bar."""
        if self._enabled:
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
        elapsed_seconds adds up over all sessions of a run.
        """
        if not self._enabled:
            return
        tokens_per_second = None
        if split == "train" and self._steps > 0:
            tokens_per_second = self._steps * self._tokens_per_step / self._seconds
            self._speed = f"{tokens_per_second:,.0f} tokens/s"
            self._steps, self._seconds = 0, 0.0
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

        # For people: the latest losses beside the bar; a line of text where there is no bar.
        self._latest_loss[split] = loss
        names = {"train": "loss", "val": "val"}
        losses = [f"{names[key]} {self._latest_loss[key]:.4f}" for key in names if key in self._latest_loss]
        self._bar.set_postfix_str(", ".join([*losses, self._speed]), refresh=False)
        if split != "train" or self._bar.disable:
            width = len(str(self._max_steps))
            text = f"step {step:{width}}/{self._max_steps}  {split:5}  loss {loss:.4f}"
            speed = self._speed if tokens_per_second else ""
            self.print(f"{text}  {bits_per_byte:.4f} bits/byte  {speed}".rstrip())

    def log_sample(self, step: int, text: str) -> None:
        """Write a generated text to samples.jsonl and show it."""
        if self._enabled:
            self._samples.append(json.dumps({"step": step, "text": text}))
            self.print(f"step {step} writes:\n{text}\n")

    def print(self, text: str) -> None:
        """Print text, above the bar where there is one."""
        if self._enabled and not self._quiet:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def sync(self) -> None:
        """Flush both files to the disk, so that what is logged so far outlives a power loss."""
        if self._enabled:
            self._samples.sync()
            self._lines.sync()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._enabled:
            return
        if self._trackers is not None:
            self._trackers.close()
        self._bar.close()
        self._samples.close()
        self._lines.close()


def _step_of(line: bytes) -> float:
    """The step of a line; infinite if it is no line of ours, as after a power loss."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return math.inf


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a metrics.jsonl, in order; a torn last line is skipped."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)
