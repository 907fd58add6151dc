"""What a save costs: `python tests/reliability/save_cost.py [FOLDER]`.

Compares saving a checkpoint (weights, two moments of AdamW, manifest, reading back, renaming, removing the
one before) with overwriting the same files, and one file of as many bytes, each with an fsync; all in turn.
Prints the quickest of each in seconds.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from gptmini.checkpoint.state import Checkpoint, TrainingState
from gptmini.checkpoint.store import CheckpointStore
from gptmini.config import GPTConfig
from gptmini.data.tokenizers import Tokenizer
from gptmini.model import GPT

SHAPES = {"tiny": (4, 4, 128, 30), "small": (6, 6, 384, 20), "GPT-2 124M": (12, 12, 768, 6)}


def seconds(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def write_plainly(path, data):
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_all_plainly(folder, files):
    for number, data in enumerate(files):
        write_plainly(folder / f"plain-{number}", data)


def main(folder):
    tokenizer = Tokenizer.train("", "bytes")
    print(f"{'model':12} {'MiB':>8} {'one file':>10} {'same files':>11} {'save':>10} {'ratios':>12}")
    for name, (n_layer, n_head, n_embd, repeats) in SHAPES.items():
        vocab_size = 50257 if n_embd == 768 else 1024
        shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "context_length": 256}
        config = GPTConfig(**shape, vocab_size=vocab_size)
        weights = {name: parameter.detach() for name, parameter in GPT(config).named_parameters()}
        moments = {f"{name}/{m}": torch.rand_like(w) for name, w in weights.items() for m in ("m", "v")}
        store = CheckpointStore(folder / name, keep=1)
        plain, same, saves, size = [], [], [], 0
        for step in range(1, repeats + 1):
            state = TrainingState(
                step=step, tokens=step, config={}, data_digest="", tokenizer_digest="", environment={}
            )
            checkpoint = Checkpoint(step, weights, moments, state)
            saves.append(seconds(lambda save=checkpoint: store.save(save, config, tokenizer)))  # noqa: B023
            files = [f.read_bytes() for f in store.path(step).rglob("*") if f.is_file()]
            same.append(seconds(lambda files=files: write_all_plainly(folder, files)))
            data = b"".join(files)
            del files
            plain.append(seconds(lambda data=data: write_plainly(folder / "plain", data)))
            size = len(data)
        one, all_files, save = min(plain), min(same), min(saves)
        times = f"{one:10.3f} {all_files:11.3f} {save:10.3f} {save / one:6.2f} {save / all_files:5.2f}"
        print(f"{name:12} {size / 2**20:8.1f} {times}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        main(Path(folder))
