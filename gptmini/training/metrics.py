"""What a run reports: metrics.jsonl for programs, a progress bar or plain lines for people."""

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gptmini.atomic_io import AppendOnlyLog, filter_lines
from gptmini.training.trackers import Trackers


class Metrics:
    """Writes one JSON object a line, and shows progress: a bar on a terminal, plain lines elsewhere.

    With `enabled=False`, as on every rank but the main one, it opens no file and prints nothing.
    """

    def __init__(
        self,
        run_dir: Path,
        first_step: int,
        max_steps: int,
        tokens_per_step: int,
        quiet: bool,
        enabled: bool = True,
    ) -> None:
        """Open samples.jsonl and metrics.jsonl in `run_dir`, to append after `first_step`."""
        self._max_steps, self._tokens_per_step = max_steps, tokens_per_step
        self._quiet = quiet or not enabled
        self.trackers: Trackers | None = None  # which receive what is logged too

        # Drop the lines of steps that a resumed run takes again, and a last line torn by a crash.
        self._files: dict[str, AppendOnlyLog] = {}
        for name in ("samples", "metrics") if enabled else ():
            path = run_dir / f"{name}.jsonl"
            filter_lines(path, lambda line: _step_of(line) <= first_step)
            self._files[name] = AppendOnlyLog(path)

        earlier = list(read_metrics(run_dir / "metrics.jsonl")) if enabled else []
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
            disable=self._quiet or not sys.stderr.isatty(),
        )

    def count_step(self, seconds: float) -> None:
        """Count an optimizer step, for tokens per second and the bar."""
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
        tokens_per_second, speed = None, ""
        if split == "train" and self._steps > 0:
            tokens_per_second = round(self._steps * self._tokens_per_step / self._seconds, 1)
            speed = self._speed = f"{tokens_per_second:,.0f} tokens/s"
            self._steps, self._seconds = 0, 0.0
        line = {
            "step": step,
            "split": split,
            "loss": loss,
            "bits_per_byte": bits_per_byte,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens": step * self._tokens_per_step,
            "tokens_per_second": tokens_per_second,
            "elapsed_seconds": round(time.perf_counter() - self._started, 3),
        }
        self._append("metrics", line)
        if self.trackers is not None:
            self.trackers.log(step, split, line)

        # For people: the latest losses beside the bar; a line of text where there is no bar.
        self._latest_loss[split] = loss
        names = {"train": "loss", "val": "val"}
        losses = [f"{names[key]} {self._latest_loss[key]:.4f}" for key in names if key in self._latest_loss]
        self._bar.set_postfix_str(", ".join([*losses, self._speed]), refresh=False)
        if split != "train" or self._bar.disable:
            width = len(str(self._max_steps))
            text = f"step {step:{width}}/{self._max_steps}  {split:5}  loss {loss:.4f}"
            self.print(f"{text}  {bits_per_byte:.4f} bits/byte  {speed}".rstrip())

    def log_sample(self, step: int, text: str) -> None:
        """Write a generated text to samples.jsonl and show it."""
        self._append("samples", {"step": step, "text": text})
        self.print(f"step {step} writes:\n{text}\n")

    def _append(self, name: str, line: Mapping[str, object]) -> None:
        if name in self._files:
            self._files[name].append(json.dumps(line))

    def print(self, text: str) -> None:
        """Print text, above the bar where there is one."""
        if not self._quiet:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def sync(self) -> None:
        """Flush both files to the disk, so that what is logged so far outlives a power loss."""
        for file in self._files.values():
            file.sync()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.trackers is not None:
            self.trackers.close()
        self._bar.close()
        for file in self._files.values():
            file.close()


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
