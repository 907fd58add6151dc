"""Preparing a gigabyte of text with a BPE of GPT-2's size: seconds, throughput, peak memory."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent.parent


def bench_prepare(rounds: int) -> None:
    """Prepare synthetic text in a process of its own, and print its time and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text.jsonl")
        started = time.perf_counter()
        write_text(path)
        print(f"{path.stat().st_size / 1e9:.2f} GB of synthetic text, {time.perf_counter() - started:.0f} s")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", PREPARE, path, str(rounds)], check=True, env=environment)


PREPARE = """
import os, resource, sys, tempfile, time
from gptmini.config import TokenizerConfig
from gptmini.data.corpus import open_corpus
from gptmini.data.prepare import prepare_corpus
from gptmini.data.tokenizers import build_tokenizer

def report(what, seconds):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what:32}{seconds:7.1f} s {size / 1e6 / seconds:7.1f} MB/s   peak {peak:.0f} MiB", flush=True)

times = [time.perf_counter()]
corpus = open_corpus(sys.argv[1])
size = corpus.contents.total_bytes
times.append(time.perf_counter())
report("first pass, for the digest", times[1] - times[0])
tokenizer = build_tokenizer(TokenizerConfig(vocab_size=50257), corpus)
report(f"training BPE, {tokenizer.vocab_size:,} tokens", time.perf_counter() - times[1])
# Whole preparations, in turn; a module that is None cannot be imported.
for number in range(int(sys.argv[2])):
    for engine, modules in (("tiktoken", {"gigatoken": None}), ("gigatoken", {})):
        sys.modules.pop("gigatoken", None)
        sys.modules.update(modules)
        with tempfile.TemporaryDirectory() as cache:
            os.environ["GPTMINI_CACHE_DIR"] = cache
            started = time.perf_counter()
            data = prepare_corpus(open_corpus(sys.argv[1]), 0.01, tokenizer, 1024, quiet=True)
            report(f"prepared by {engine}", time.perf_counter() - started)
print(f"{data.meta.documents:,} documents, {data.meta.train_tokens + data.meta.val_tokens:,} tokens")
"""


def write_text(path: Path, size: int = 1_000_000_000) -> None:
    """JSON lines with documents of synthetic words, distributed by Zipf's law."""
    rng = np.random.default_rng(0)
    syllables = [a + b + c for a in "bdfghklmnprstvw" for b in "aeiou" for c in ("", "n", "r", "st")]
    lengths = rng.choice([1, 2, 3, 4], p=[0.2, 0.45, 0.25, 0.1], size=200_000)
    words = np.array(["".join(rng.choice(syllables, n)) for n in lengths], dtype=object)
    words[::9] += ","
    with path.open("w") as file:
        while file.tell() < size:
            chosen = rng.zipf(1.2, 400_000) - 1
            for paragraphs in words[chosen[chosen < len(words)]][:300_000].reshape(-1, 5, 100):
                text = ".\\n\\n".join(map(" ".join, paragraphs))
                file.write(f'{{"text": "{text}"}}\n')
