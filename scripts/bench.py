"""Benchmarks, each against its alternatives in one run: `python scripts/bench.py train`, for example."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # run from a checkout, installed or not

from benchmarks.busy import bench_busy
from benchmarks.distributed import bench_distributed
from benchmarks.generate import bench_generate
from benchmarks.memory import bench_memory
from benchmarks.page import bench_page
from benchmarks.prepare import bench_prepare
from benchmarks.train import TABLES, bench_train


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    benches = parser.add_subparsers(dest="bench", required=True)
    train = benches.add_parser("train", help="time to a loss, tokens per second, FLOP/s against a matmul")
    train.add_argument("--peer-nanogpt", type=Path, metavar="PATH", help="a nanoGPT checkout to compare with")
    train.add_argument("--rounds", type=int, default=3, help="repetitions of each measurement (default 3)")
    train.add_argument("--only", nargs="+", choices=TABLES, default=TABLES, help="only these tables")
    generate = benches.add_parser(
        "generate", help="tokens per second against transformers, ctranslate2, llama.cpp and memory bandwidth"
    )
    generate.add_argument("--rounds", type=int, default=3, help="repetitions of each measurement (default 3)")
    prepare = benches.add_parser("prepare", help="throughput and memory of tokenizing a gigabyte")
    prepare.add_argument("--rounds", type=int, default=3, help="preparations by each engine (default 3)")
    benches.add_parser("page", help="the exported page in Chromium: tokens per second on one core, file size")
    benches.add_parser("memory", help="peak memory of training runs against gptmini plan; on Linux")
    distributed = benches.add_parser("ranks", help="two ranks of one thread against one process of two")
    distributed.add_argument(
        "--rounds", type=int, default=3, help="repetitions of each measurement (default 3)"
    )
    busy = benches.add_parser("busy", help="speed beside processes that spin, against the fair share")
    busy.add_argument("--peer-nanogpt", type=Path, metavar="PATH", help="a nanoGPT checkout to compare with")
    busy.add_argument("--rounds", type=int, default=3, help="repetitions of each measurement (default 3)")
    busy.add_argument("--spins", type=int, nargs="+", default=[], help="train by these GOMP_SPINCOUNTs too")
    options = parser.parse_args()
    if options.bench == "train":
        bench_train(options.peer_nanogpt, options.rounds, options.only)
    elif options.bench == "ranks":
        bench_distributed(options.rounds)
    elif options.bench == "busy":
        bench_busy(options.peer_nanogpt, options.rounds, options.spins)
    elif options.bench == "prepare":
        bench_prepare(options.rounds)
    elif options.bench == "generate":
        bench_generate(options.rounds)
    else:
        benches_alone = {"memory": bench_memory, "page": bench_page}
        benches_alone[options.bench]()


if __name__ == "__main__":
    main()
