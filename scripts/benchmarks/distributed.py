"""Data parallelism: throughput of two ranks with one thread each against one process with two threads."""

import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.machine import describe_machine
from benchmarks.processes import ROOT, TORCHRUN, format_numbers, metrics, run, write_words

MODEL = {"n-layer": 4, "n-head": 4, "n-embd": 256, "context-length": 128}
STEPS, LINES = 16, 4  # the first quarter warms up


def bench_distributed(rounds: int) -> None:
    """Print tokens per second of both, for AdamW and Muon, and the speedup."""
    print(f"4 layers x 256, T 128, B 32, fp32, byte tokens, {STEPS} steps; {describe_machine()}")
    launches = {
        "1 process, 2 threads": ([sys.executable], "2"),
        "2 ranks, 1 thread each": ([*TORCHRUN, "2"], "1"),
    }
    with tempfile.TemporaryDirectory() as folder:
        write_words(Path(folder, "corpus.txt"), 2_000_000)
        for optimizer in ("adamw", "muon"):
            speeds: dict[str, list[float]] = {name: [] for name in launches}
            for number in range(rounds):
                for name, (python, threads) in launches.items():
                    out = Path(folder, f"{optimizer}-{number}-{threads}")
                    args = _train_args(optimizer, threads, out)
                    run([*python, str(ROOT / "scripts" / "train.py"), *args], cwd=Path(folder))
                    lines = [line for line in metrics(out) if line["split"] == "train"]
                    speeds[name].append(median(line["tokens_per_second"] for line in lines[1:]))
            one, two = speeds.values()
            ratios = [b / a for a, b in zip(one, two, strict=True)]
            for name, rates in speeds.items():
                print(f"{optimizer}: {name}: {median(rates):,.0f} tokens/s (rounds: {format_numbers(rates)})")
            print(f"{optimizer}: {median(ratios):.2f} x one process (median of the ratios within each round)")


def _train_args(optimizer: str, threads: str, out: Path) -> list[str]:
    """Command-line arguments of a run that is nearly all training steps."""
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
        *(arg for key, value in values.items() for arg in (f"--{key}", str(value))),
    ]
