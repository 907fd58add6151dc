"""What exactness and crash safety cost between saves: `python tests/reliability/loop_cost.py`.

Compares a run (rates, seeds of dropout, data order, metrics, signals; its one evaluation and save left out)
with a bare loop over the same model and optimizer: batches from PyTorch's generator, forward, backward,
update. Both in turn, five times; prints milliseconds a step.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from gptmini.checkpoint.store import CheckpointStore
from gptmini.config import Config
from gptmini.training.initialize import build_model_and_data
from gptmini.training.loss import next_token_loss
from gptmini.training.metrics import Metrics
from gptmini.training.optim import build_optimizers
from gptmini.training.runtime import start_runtime
from gptmini.training.signals import stop_signal
from gptmini.training.trainer import Trainer

STEPS = 100


def run(config, folder):
    """Seconds a step of a run, without its evaluation and its save."""
    runtime = start_runtime(config.runtime)
    trainer = Trainer(
        config, runtime, *build_model_and_data(config, runtime, quiet=True), CheckpointStore(folder, keep=1)
    )
    trainer.save = trainer.sample = lambda metrics: None
    trainer.evaluate = lambda metrics: False
    with Metrics(folder, 0, STEPS, 1, quiet=True) as metrics, stop_signal() as stop:
        started = time.perf_counter()
        trainer.run(metrics, stop)
        return (time.perf_counter() - started) / STEPS


def bare_loop(config):
    """Seconds a step where nothing is promised."""
    model, data = build_model_and_data(config, start_runtime(config.runtime), quiet=True)
    optimizers = build_optimizers(model.train(), config.optim)
    tokens, T = torch.from_numpy(data.train[:].astype("int64")), config.model.context_length
    started = time.perf_counter()
    for _ in range(STEPS):
        starts = torch.randint(len(tokens) - T, (config.train.batch_size,))
        inputs = torch.stack([tokens[s : s + T] for s in starts])
        targets = torch.stack([tokens[s + 1 : s + 1 + T] for s in starts])
        loss = next_token_loss(model(inputs), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip)
        loss.item()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
    return (time.perf_counter() - started) / STEPS


def main(folder):
    model = {"n_layer": 2, "n_head": 4, "n_embd": 128, "context_length": 64, "dropout": 0.1}
    config = Config.model_validate(
        {
            "model": model,
            "tokenizer": {"kind": "bytes"},
            "train": {"max_steps": STEPS, "batch_size": 32},
            "runtime": {"device": "cpu", "precision": "fp32"},
        }
    )
    runs, bare = [], []
    for number in range(6):
        (folder / str(number)).mkdir()
        bare.append(1000 * bare_loop(config))
        runs.append(1000 * run(config, folder / str(number)))
    ratios = [a / b for a, b in zip(runs[1:], bare[1:], strict=True)]  # the first of each warms up
    print(f"bare loop {min(bare[1:]):.2f} ms a step, run {min(runs[1:]):.2f} ms, each the quickest of five")
    print(
        f"ratio of neighbours: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        main(Path(folder))
