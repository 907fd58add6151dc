"""What `gptmini plan` prints: parameters, tokens, FLOPs and memory of a run, from its config alone."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from gptmini.config import Config, GPTConfig
from gptmini.data.prepare import find_prepared
from gptmini.data.tokenizers import load_tokenizer
from gptmini.data.tokenizers.byte_pair import BPE_VOCAB_SIZE
from gptmini.training.estimate import (
    Memory,
    estimate,
    fitting_micro_batch_size,
    mebibytes,
    micro_batch_size_per_rank,
)

GPT2_VOCAB_SIZE = 50257


def describe(
    config: Config, world_size: int, tokens_per_second: float | None, *, measure: bool
) -> Iterator[str]:
    """The lines of a plan for `world_size` ranks; with `measure`, also of a few steps on this machine.

    Hardware detection needs torch, so where `runtime.precision` is auto there is a memory column for each
    precision that it may become. Raises UserError where the ranks cannot share a batch.
    """
    train = config.train
    micro = micro_batch_size_per_rank(train, world_size)
    data = find_prepared(config.data, config.tokenizer) if train.init_from is None else None
    vocab_size = data.meta.vocab_size if data else _expected_vocab_size(config)
    model = GPTConfig(vocab_size=vocab_size, **config.model.model_dump())
    corpus_tokens = data.meta.train_tokens if data else None
    if train.micro_batch_size == "auto" and config.runtime.device in ("auto", "cpu"):
        micro = fitting_micro_batch_size(config, model, "fp32", world_size)

    precisions = ("fp32", "bf16") if config.runtime.precision == "auto" else (config.runtime.precision,)
    plans = {name: estimate(config, model, corpus_tokens, name, world_size, micro) for name in precisions}
    run = plans[precisions[0]]
    shape = f"{train.batch_size // (micro * world_size)} x {micro} sequences of {model.context_length:,}"
    estimated = "" if data else " (expected: the corpus has not been prepared yet)"
    yield f"parameters        {run.parameters:,}"
    yield f"vocabulary        {vocab_size:,}{estimated}"
    on_ranks = "" if world_size == 1 else f" on each of {world_size} ranks"
    yield f"tokens per step   {run.tokens_per_step:,}: {shape}{on_ranks}"
    yield f"tokens            {run.tokens:,} in {train.max_steps:,} steps"
    if run.epochs is not None:
        yield f"epochs            {run.epochs:.1f} of {corpus_tokens:,} training tokens"
    yield f"FLOPs             {run.flops_per_token * run.tokens:.3g}; {run.flops_per_token:.3g} per token"
    if tokens_per_second is not None:
        yield _hours(run.tokens, tokens_per_second)
    yield ""
    yield from _memory_table({name: planned.memory for name, planned in plans.items()})
    if run.warning:
        yield f"\nwarning: {run.warning}"
    if measure:
        yield "\nmeasuring some steps on this machine"
        yield from _measure(config, vocab_size, micro, run.tokens)


def _measure(config: Config, vocab_size: int, micro_batch_size: int, tokens: int) -> Iterator[str]:
    """Throughput, hours and peak memory of a few steps of at most two micro batches."""
    from gptmini.planning.throughput import measure_throughput
    from gptmini.training.runtime import peak_memory_bytes, start_runtime

    runtime = start_runtime(config.runtime)
    batch_size = min(config.train.batch_size, 2 * micro_batch_size)
    train = config.train.model_copy(update={"batch_size": batch_size})
    speed = measure_throughput(config.model_copy(update={"train": train}), vocab_size, runtime, seconds=5.0)
    yield str(runtime)
    yield _hours(tokens, speed)
    yield f"memory            {mebibytes(peak_memory_bytes(runtime.device))} at the peak, measured"


def _hours(tokens: int, tokens_per_second: float) -> str:
    hours = tokens / tokens_per_second / 3600
    shown = f"{hours:,.2f}" if hours >= 0.1 else f"{hours:.1g}"
    return f"hours             {shown} at {tokens_per_second:,.0f} tokens/s"


def _expected_vocab_size(config: Config) -> int:
    """The vocabulary's size before the corpus has been read; for kind chars a guess.

    >>> _expected_vocab_size(Config.model_validate({"tokenizer": {"kind": "gpt2"}}))
    50257
    """
    if config.train.init_from is not None:
        folder = Path(config.train.init_from)
        steps = sorted(folder.glob("checkpoints/step-*"))
        found = load_tokenizer(steps[-1] if steps else folder) if folder.is_dir() else None
        return found.vocab_size if found else GPT2_VOCAB_SIZE
    bpe = config.tokenizer.vocab_size or BPE_VOCAB_SIZE
    return {"gpt2": GPT2_VOCAB_SIZE, "bpe": bpe, "bytes": 257, "chars": 256}[config.tokenizer.kind]


def _memory_table(memories: Mapping[str, Memory]) -> Iterator[str]:
    """Lines of a table: what takes how much memory on a rank, with a column for each precision."""
    labels = {
        "gathered": "gathered layers",
        "update": "Muon's update",
        "saved": "to save (rank 0)",
        "overhead": "PyTorch + fragmentation",
        "peak": "at the peak",
    }
    yield f"{'memory of a rank':24}" + "".join(f"{name:>14}" for name in memories)
    for field in dataclasses.fields(Memory):
        sizes = [getattr(memory, field.name) for memory in memories.values()]
        if any(sizes):
            label = labels.get(field.name, field.name)
            yield f"{label:24}" + "".join(f" {mebibytes(size):>13}" for size in sizes)
    yield "(the peak is the largest total at any moment, not the sum: logits are freed as gradients grow)"
