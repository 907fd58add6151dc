"""A config for `gptmini train` without a CONFIG.yaml: chosen for the text, this machine and the minutes.

All is decided before step 1 and written to the config, so the run is like any other: its YAML repeats it, and
a resumed run keeps its learning rate schedule.
"""

import glob
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gptmini.checkpoint.store import CheckpointStore
from gptmini.config import Config, GPTConfig, dump_config, load_config
from gptmini.data.corpus import open_corpus
from gptmini.errors import UserError
from gptmini.planning.throughput import dry_run, measure_throughput
from gptmini.training.estimate import estimate, halves
from gptmini.training.initialize import build_model_and_data
from gptmini.training.resume import refuse_used_folder, saved_tokenizer
from gptmini.training.runtime import Runtime, start_runtime

MINUTES = 5.0
FEWEST_STEPS = 2  # the last step of a linear decay is at a rate of 0: of one step nothing is learned
EVALUATIONS = 10  # per run, and half as many samples
MEMORY_FRACTION = 0.4  # of the device's memory, for activations and logits
BYTES_PER_TOKEN = 3  # roughly, of BPE at these vocabulary sizes


class Size(NamedTuple):
    """A model shape."""

    n_layer: int
    n_head: int
    n_embd: int
    context_length: int

    @property
    def parameters(self) -> int:
        """Weights in the blocks' matrices, without the embeddings."""
        return 12 * self.n_layer * self.n_embd**2


SIZES = (  # smallest first
    Size(2, 4, 128, 128),
    Size(4, 4, 128, 128),
    Size(4, 6, 192, 128),
    Size(6, 8, 256, 256),
    Size(6, 6, 384, 256),
    Size(8, 8, 512, 512),
    Size(12, 12, 768, 1024),
)
TOKENS_PER_PARAMETER = 2  # a model that sees fewer in the time is too large for it
PARAMETERS_PER_TEXT_TOKEN = 32  # a larger model memorizes the text, even with dropout


def choose_config(
    path: str | None,
    overrides: dict[str, Any],
    minutes: float | None,
    *,
    resume: bool,
    quiet: bool,
    started: float,
) -> Config:
    """The config of `gptmini train` without a CONFIG.yaml, or with minutes for a run that is resumed.

    The dotted keys in `overrides` are not chosen. A new run is to end `minutes` (None: MINUTES) after
    `started`, a reading of time.monotonic; a resumed one keeps its config, with as many steps more as
    `minutes` take. Raises UserError for a corpus or an override that cannot be used.
    """
    if minutes is not None and "train.max_steps" in overrides:
        raise UserError("--minutes and --train.max-steps were both given: leave one out")
    given, seconds = load_config(path, overrides), 60 * (minutes or MINUTES)
    if path is not None or given.train.init_from is not None:
        return extend_config(path, overrides, seconds, keep_intervals=True, quiet=quiet)
    chosen: dict[str, Any] = {"train.out_dir": _run_folder(given.data.corpus)}
    run_folder = Path((chosen | overrides)["train.out_dir"])
    store = CheckpointStore(run_folder, keep=1)
    saved = run_folder / "config.yaml"
    if resume and minutes is None and saved.is_file():
        return load_config(saved, overrides)
    if resume and store.steps():
        return extend_config(saved, overrides, seconds, keep_intervals=False, quiet=quiet)
    refuse_used_folder(store, resume)
    runtime = start_runtime(given.runtime)

    # 1. The size of the text. Training reads it once more, so that time is part of the budget.
    reading = time.monotonic()
    corpus = open_corpus(given.data.corpus, given.data.text_field, given.data.errors)
    text_bytes = corpus.contents.total_bytes
    reading_seconds = time.monotonic() - reading
    if not quiet:
        print(f"{corpus.name}: {text_bytes:,} bytes of text; measuring training throughput", flush=True)

    # 2. The largest model that this machine can train on that text in the time.
    size, tokens = choose_size(text_bytes, seconds, lambda size: _tokens_per_second(size, runtime))
    chosen |= choose_values(size, tokens, text_bytes) | {"model.attention": _attention(size, runtime)}
    if given.tokenizer.kind != "bpe" or given.tokenizer.folder is not None:
        del chosen["tokenizer.vocab_size"]  # only a new BPE has a size to choose
    chosen["train.micro_batch_size"] = _micro_batch_size(load_config(None, chosen | overrides), runtime)
    config = load_config(None, chosen | overrides)

    # 3. As many steps as fit: what is left of the time, divided by the time of a step.
    warning = ""
    if "train.max_steps" not in overrides:
        model, data = build_model_and_data(config, runtime, quiet)
        measured = dry_run(config, runtime, model, data, seconds)
        left = seconds - (time.monotonic() - started) - reading_seconds
        steps = count_steps(left, *measured)
        chosen |= choose_steps(steps)
        config = load_config(None, chosen | overrides)
        if steps < FEWEST_STEPS:
            warning = (
                "\nwarning: preparing the text and the dry run took all of the time, so the run is "
                f"{FEWEST_STEPS} steps long; continue it with --resume --minutes N\n"
            )
    if not quiet:
        chosen_yaml = dump_config(config, complete=False)
        print(f"chosen for {seconds / 60:g} minutes on {runtime}:\n\n{chosen_yaml}{warning}")
    return config


def extend_config(
    path: str | Path | None, overrides: dict[str, Any], seconds: float, *, keep_intervals: bool, quiet: bool
) -> Config:
    """The config of a run to resume, with as many steps more as can be trained in `seconds`.

    Without `keep_intervals`, those of evaluating, sampling and logging are chosen for the new length.
    Raises UserError where there is nothing to resume.
    """
    config = load_config(path, overrides)
    store = CheckpointStore(Path(config.train.out_dir), keep=1)
    refuse_used_folder(store, resume=True)
    steps = store.steps()
    if not steps:
        raise UserError(
            f"--minutes: {store.run_folder} has no checkpoint to continue; of a new run with a size, "
            "train.max_steps says how long it takes"
        )
    runtime = start_runtime(config.runtime)
    model, data = build_model_and_data(config, runtime, quiet, saved_tokenizer(store, config))
    measured = dry_run(config, runtime, model, data, seconds)
    more = count_steps(seconds, *measured, config.train.eval_interval if keep_intervals else None)
    max_steps = steps[-1] + max(FEWEST_STEPS, more)
    if not quiet:
        print(
            f"{seconds / 60:g} minutes more on {runtime}: train.max_steps was {config.train.max_steps} and "
            f"is now {max_steps}; the learning rate follows its schedule over all of them, so where it had "
            "fallen it rises again",
            flush=True,
        )
    chosen = {"train.max_steps": max_steps} if keep_intervals else choose_steps(max_steps)
    return load_config(path, chosen | overrides)


def count_steps(
    seconds: float, step_seconds: float, evaluation_seconds: float, eval_interval: int | None = None
) -> int:
    """How many steps fit into `seconds`, with an evaluation each `eval_interval` steps.

    Without an interval: with EVALUATIONS of them, or one each step where there are fewer steps.
    """
    at_interval = seconds / (step_seconds + evaluation_seconds / (eval_interval or 1))
    in_all = (seconds - EVALUATIONS * evaluation_seconds) / step_seconds
    return int(at_interval if eval_interval else max(at_interval, in_all))


def choose_size(
    text_bytes: int, seconds: float, tokens_per_second: Callable[[Size], float]
) -> tuple[Size, int]:
    """The largest size that sees enough tokens in `seconds`, and how many it sees.

    `tokens_per_second` is called with each size, smallest first, until one is too slow.
    """
    chosen, tokens = SIZES[0], 0
    for size in SIZES:
        if size != SIZES[0] and size.parameters * BYTES_PER_TOKEN > PARAMETERS_PER_TEXT_TOKEN * text_bytes:
            break
        seen = int(seconds * tokens_per_second(size))
        if size != SIZES[0] and seen < TOKENS_PER_PARAMETER * size.parameters:
            break
        chosen, tokens = size, seen
    return chosen, tokens


def choose_values(size: Size, tokens: int, text_bytes: int) -> dict[str, Any]:
    """Dotted config keys for a model of `size` that sees `tokens` tokens of a text of `text_bytes` bytes.

    >>> values = choose_values(Size(4, 4, 128, 128), tokens=10_000_000, text_bytes=1_115_394)
    >>> values["tokenizer.vocab_size"], values["train.batch_size"], values["model.dropout"]
    (1024, 32, 0.2)
    """
    val_fraction = 0.1 if text_bytes <= 10_000_000 else float(f"{1_000_000 / text_bytes:.2g}")
    val_tokens = max(1, int(val_fraction * text_bytes / BYTES_PER_TOKEN))
    context_length = min(size.context_length, _power_of_two(val_tokens / 2, 8, 1024))
    vocab_size = min(text_bytes / 1000, size.parameters / size.n_embd)
    epochs = tokens * BYTES_PER_TOKEN / text_bytes
    eval_tokens = max(4096, tokens // 100)  # a forward pass costs a third of a step: 10 evaluations, 3 %
    return {
        "model.n_layer": size.n_layer,
        "model.n_head": size.n_head,
        "model.n_embd": size.n_embd,
        "model.context_length": context_length,
        "model.dropout": 0.2 if epochs > 20 else 0.1 if epochs > 5 else 0.0,
        "data.val_fraction": val_fraction,
        "tokenizer.vocab_size": _power_of_two(vocab_size, 512, 32768),
        "optim.optimizer": "muon",
        "optim.lr": round(0.01 * 128 / size.n_embd, 4),
        "optim.weight_decay": 0.0,
        "optim.schedule": "linear",
        "optim.min_lr_ratio": 0.0,
        "train.batch_size": max(4, _power_of_two(tokens / 2000, 1024, 1 << 19) // context_length),
        "train.eval_tokens": eval_tokens if eval_tokens < val_tokens else None,
    }


def choose_steps(max_steps: int) -> dict[str, Any]:
    """Dotted config keys that follow from the number of steps; at least FEWEST_STEPS."""
    max_steps = max(FEWEST_STEPS, max_steps)
    eval_interval = math.ceil(max_steps / EVALUATIONS)
    return {
        "optim.warmup_steps": min(100, max_steps // 20),
        "train.max_steps": max_steps,
        "train.eval_interval": eval_interval,
        "train.sample_interval": 2 * eval_interval,
        "train.log_interval": max(10, eval_interval // 5),
    }


def _tokens_per_second(size: Size, runtime: Runtime) -> float:
    """Training throughput of a model of this size, with batches of about 4096 tokens."""
    values: dict[str, Any] = {f"model.{key}": value for key, value in size._asdict().items()}
    values |= {"model.attention": _attention(size, runtime), "optim.optimizer": "muon"}
    values |= {"train.batch_size": max(4, 4096 // size.context_length)}
    return measure_throughput(load_config(None, values), 256, runtime, 0.3)


def _attention(size: Size, runtime: Runtime) -> str:
    """The faster attention: on a CPU, sdpa's backward pass wins at long contexts only (docs/results.md)."""
    return "additive" if runtime.device.type == "cpu" and size.context_length <= 256 else "sdpa"


def _micro_batch_size(config: Config, runtime: Runtime) -> int | None:
    """The largest micro batch whose activations and logits fit MEMORY_FRACTION of the memory; None: all."""
    memory = 4 << 30
    if runtime.device.type == "cuda":
        memory = torch.cuda.get_device_properties(runtime.device).total_memory
    model = GPTConfig(vocab_size=config.tokenizer.vocab_size or 1, **config.model.model_dump())
    for size in halves(config.train.batch_size):
        needed = estimate(config, model, None, runtime.precision, micro_batch_size=size).memory
        if needed.activations + needed.logits <= MEMORY_FRACTION * memory:
            break
    return None if size == config.train.batch_size else size


def _run_folder(corpus: str | tuple[str, ...]) -> str:
    """The default run folder: runs/ and the name of the corpus.

    >>> _run_folder("texts/my text.txt"), _run_folder("notes/**/*.md"), _run_folder("-")
    ('runs/my_text', 'runs/notes', 'runs/text')
    """
    first = corpus if isinstance(corpus, str) else corpus[0]
    parts = [part for part in Path(first).parts if not glob.has_magic(part)]
    name = re.sub(r"\W+", "_", Path(*parts).name.partition(".")[0]).strip("_")
    return f"runs/{name or 'text'}"


def _power_of_two(number: float, lowest: int, highest: int) -> int:
    """The largest power of two up to `number`, clamped to the limits, which are powers of two."""
    return 2 ** int(math.log2(min(max(number, lowest), highest)))
