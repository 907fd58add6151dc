"""How fast this machine trains: steps of the real trainer, timed."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from gptmini.checkpoint.store import CheckpointStore
from gptmini.config import Config, GPTConfig
from gptmini.data.token_files import Meta, TokenData
from gptmini.data.tokenizers import CharTokenizer
from gptmini.model import GPT
from gptmini.training.metrics import Metrics
from gptmini.training.micro_batch import fit_micro_batch_size
from gptmini.training.optim import learning_rate_factor, set_learning_rate
from gptmini.training.runtime import Runtime
from gptmini.training.signals import temporary_folder
from gptmini.training.trainer import Trainer


def dry_run(
    config: Config, runtime: Runtime, model: GPT, data: TokenData, seconds: float
) -> tuple[float, float]:
    """Seconds per training step, and per evaluation with its checkpoint and half a sample."""
    with temporary_folder() as folder:
        store = CheckpointStore(folder, keep=1)
        trainer = Trainer(config, runtime, model, data, store)
        step_seconds = _time_steps(trainer, min(20.0, max(1.0, 0.03 * seconds)))
        with Metrics(folder, 0, 1, trainer.tokens_per_step, quiet=True) as metrics:
            begun = time.monotonic()
            trainer.evaluate(metrics)
            trainer.save(metrics)
            evaluated = time.monotonic()
            trainer.sample(metrics)
            sampled = time.monotonic()
    return step_seconds, (evaluated - begun) + (sampled - evaluated) / 2


def measure_throughput(config: Config, vocab_size: int, runtime: Runtime, seconds: float) -> float:
    """Training throughput in tokens per second on random tokens, over `seconds` and at least three steps."""
    tokenizer = CharTokenizer([chr(0x10000 + i) for i in range(vocab_size)])  # any distinct characters
    length = max(100_000, 2 * config.model.context_length)
    noise = np.random.default_rng(0).integers(vocab_size, size=length, dtype=np.uint32)
    unused: dict[str, Any] = {}  # a training step reads no metadata
    data = TokenData(noise, noise, tokenizer, Meta.model_construct(**unused))
    model = GPT(GPTConfig(vocab_size=vocab_size, **config.model.model_dump()))
    trainer = Trainer(config, runtime, model, data, CheckpointStore(Path(), keep=1))
    return trainer.tokens_per_step / _time_steps(trainer, seconds)


def _time_steps(trainer: Trainer, seconds: float) -> float:
    """Mean seconds per training step, over `seconds` and at least three steps after two of warm-up."""
    fit_micro_batch_size(trainer)
    took: list[float] = []
    while len(took) < 5 or sum(took[2:]) < seconds:
        trainer.progress.next_step(trainer.tokens_per_step)
        step, max_steps = trainer.progress.step, trainer.config.train.max_steps
        factor = learning_rate_factor(trainer.config.optim, step, max_steps)
        set_learning_rate(trainer.optimizers, factor)
        began = time.perf_counter()
        float(trainer.train_step().loss)  # reading the loss waits for the GPU
        took.append(time.perf_counter() - began)
    return sum(took[2:]) / len(took[2:])
