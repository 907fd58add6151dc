"""Processes: training speed of two with one thread each beside one with two threads, in turn in one run."""

import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.machine import describe
from benchmarks.train import ROOT, TORCHRUN, listed, metrics, run, write_words

MODEL = {"n-layer": 4, "n-head": 4, "n-embd": 256, "context-length": 128}
STEPS, LINES = 16, 4  # the first quarter warms up


def bench_ranks(rounds: int) -> None:
    """Print tokens per second of both, for AdamW and Muon, and the ratio of each round."""
    print(f"4 layers x 256, T 128, B 32, fp32, byte tokens, {STEPS} steps; {describe()}")
    ways = {
        "1 process, 2 threads": ([sys.executable], "2"),
        "2 processes, 1 thread each": ([*TORCHRUN, "2"], "1"),
    }
    with tempfile.TemporaryDirectory() as folder:
        write_words(Path(folder, "corpus.txt"), 2_000_000)
        for optimizer in ("adamw", "muon"):
            speeds: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(rounds):
                for name, (python, threads) in ways.items():
                    out = Path(folder, f"{optimizer}-{number}-{threads}")
                    words = _words(optimizer, threads, out)
                    run([*python, str(ROOT / "scripts" / "train.py"), *words], cwd=Path(folder))
                    lines = [line for line in metrics(out) if line["split"] == "train"]
                    speeds[name].append(median(line["tokens_per_second"] for line in lines[1:]))
            one, two = speeds.values()
            ratios = [b / a for a, b in zip(one, two, strict=True)]
            for name, figures in speeds.items():
                print(f"{optimizer}: {name}: {median(figures):,.0f} tokens/s (rounds: {listed(figures)})")
            print(f"{optimizer}: {median(ratios):.2f} times as fast (median of the rounds' own ratios)")


def _words(optimizer: str, threads: str, out: Path) -> list[str]:
    """The command line of a run that does little but training steps."""
    values = {
        **{f"model.{key}": value for key, value in MODEL.items()},
        "data.corpus": "corpus.txt",
        "tokenizer.kind": "bytes",
        "optim.optimizer": optimizer,
        "train.out-dir": out,
        "train.max-steps": STEPS,
        "train.log-interval": STEPS // LINES,
        "train.eval-interval": STEPS,
        "train.eval-tokens": 1000,
        "runtime.device": "cpu",
        "runtime.precision": "fp32",
        "runtime.threads": threads,
    }
    config = out.with_suffix(".yaml")
    config.write_text("model: {}\n")
    return [
        str(config),
        "--quiet",
        *(word for key, value in values.items() for word in (f"--{key}", str(value))),
    ]
