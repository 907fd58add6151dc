"""Measurements, side by side in one run: `python scripts/bench.py train` (or another of these)."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # run from a checkout, installed or not

from benchmarks.distributed import bench_ranks
from benchmarks.generate import bench_generate
from benchmarks.memory import bench_memory
from benchmarks.prepare import bench_prepare
from benchmarks.train import TABLES, bench_train


def main() -> None:
    """Run one bench."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    benches = parser.add_subparsers(dest="bench", required=True)
    train = benches.add_parser("train", help="time to a loss, tokens per second, share of the ceilings")
    train.add_argument(
        "--peer-nanogpt", type=Path, metavar="PATH", help="a nanoGPT checkout to measure beside"
    )
    train.add_argument("--rounds", type=int, default=3, help="how often each contender runs (default 3)")
    train.add_argument("--only", nargs="+", choices=TABLES, default=TABLES, help="these tables only")
    benches.add_parser("generate", help="tokens per second against transformers and the memory")
    benches.add_parser("prepare", help="bytes per second and memory of tokenizing a gigabyte")
    benches.add_parser("memory", help="the peak of whole training runs against gptmini plan; for Linux")
    distributed = benches.add_parser("ranks", help="two processes with one thread each against one with two")
    distributed.add_argument(
        "--rounds", type=int, default=3, help="how often each contender runs (default 3)"
    )
    options = parser.parse_args()
    if options.bench == "train":
        bench_train(options.peer_nanogpt, options.rounds, options.only)
    elif options.bench == "ranks":
        bench_ranks(options.rounds)
    else:
        benches_alone = {"generate": bench_generate, "prepare": bench_prepare, "memory": bench_memory}
        benches_alone[options.bench]()


if __name__ == "__main__":
    main()
