"""What a run reports: metrics.jsonl for programs, a progress bar or plain lines for people."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from gptmini.atomic_io import AppendOnlyLog
from gptmini.training.log_files import LOG_FILES, drop_lines, format_line, read_metrics
from gptmini.training.progress import Progress
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
        for name, schema in LOG_FILES.items() if enabled else ():
            foreign = drop_lines(run_dir / name, schema, first_step)
            if foreign:
                lines = "a line that is" if foreign == 1 else f"{foreign:,} lines that are"
                print(f"{run_dir / name}: dropped {lines} not what a run writes", file=sys.stderr)
            self._files[name] = AppendOnlyLog(run_dir / name)

        self._latest_loss: dict[str, float] = {}
        elapsed_seconds = 0.0
        for line in read_metrics(run_dir / "metrics.jsonl") if enabled else ():
            if line["loss"] is not None:
                self._latest_loss[line["split"]] = line["loss"]
            elapsed_seconds = line["elapsed_seconds"]
        self._started = time.perf_counter() - elapsed_seconds
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
        progress: Progress,
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
            "step": progress.step,
            "split": split,
            "loss": loss,
            "bits_per_byte": bits_per_byte,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens": progress.tokens,
            "tokens_per_second": tokens_per_second,
            "elapsed_seconds": round(time.perf_counter() - self._started, 3),
        }
        self._append("metrics.jsonl", line)
        if self.trackers is not None:
            self.trackers.log(progress.step, split, line)

        # For people: the latest losses beside the bar; a line of text where there is no bar.
        self._latest_loss[split] = loss
        names = {"train": "loss", "val": "val"}
        losses = [f"{names[key]} {self._latest_loss[key]:.4f}" for key in names if key in self._latest_loss]
        self._bar.set_postfix_str(", ".join([*losses, self._speed]), refresh=False)
        if split != "train" or self._bar.disable:
            width = len(str(self._max_steps))
            text = f"step {progress.step:{width}}/{self._max_steps}  {split:5}  loss {loss:.4f}"
            self.print(f"{text}  {bits_per_byte:.4f} bits/byte  {speed}".rstrip())

    def log_sample(self, step: int, text: str) -> None:
        """Write a generated text to samples.jsonl and show it."""
        self._append("samples.jsonl", {"step": step, "text": text})
        self.print(f"step {step} writes:\n{text}\n")

    def _append(self, name: str, line: Mapping[str, object]) -> None:
        if name in self._files:
            self._files[name].append(format_line(line))

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
