"""Where a run begins: random weights, another model's weights, or its own last checkpoint."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from gptmini.checkpoint.hub import find_weights
from gptmini.checkpoint.store import Checkpoint, CheckpointStore, TrainingState, open_weights
from gptmini.config import Config, GPTConfig, ModelConfig, TokenizerConfig
from gptmini.data.prepare import prepare
from gptmini.data.token_files import TokenData
from gptmini.data.tokenizers import Tokenizer
from gptmini.distributed.context import DistributedContext, copy_full_
from gptmini.distributed.fsdp import build_model
from gptmini.errors import DamagedError, InUseError, UserError
from gptmini.model import GPT
from gptmini.training.optim import Optimizer, load_optimizer_tensors
from gptmini.training.runtime import DTYPES, Runtime


def refuse_used_folder(store: CheckpointStore, resume: bool) -> None:
    """Keep a run off another one's folder: UserError unless it resumes, InUseError while one is at work."""
    if store.run_folder.exists() and not store.run_folder.is_dir():
        raise UserError(f"train.out_dir = {store.run_folder}: is a file, but a run needs a folder")
    if (store.run_folder / "config.yaml").exists():
        with store.lock():
            pass
    refuse_another_run(store, resume)


def refuse_another_run(store: CheckpointStore, resume: bool) -> None:
    """UserError where the folder holds a run and this one does not resume it."""
    if not resume and (store.run_folder / "config.yaml").exists():
        raise UserError(
            f"train.out_dir = {store.run_folder}: holds a run already; "
            "go on with it by --resume, or choose another folder"
        )


@contextmanager
def claim_run_dir(store: CheckpointStore, resume: bool, distributed: DistributedContext) -> Iterator[None]:
    """Make the run folder this run's own for as long as the block lasts, and clear away what a kill left.

    For the rank that writes; the others leave the folder alone.
    """
    if not distributed.is_main:
        yield
        return
    with lock_run_dir(store):
        refuse_another_run(store, resume)  # once more: a faster process may have begun one meanwhile
        store.clean()
        yield


def lock_run_dir(store: CheckpointStore) -> AbstractContextManager[None]:
    """Make the run folder, if it is new, and keep others out of it; UserError where it cannot be made."""
    try:
        return store.lock()
    except InUseError:
        raise
    except OSError as error:
        raise UserError(
            f"train.out_dir = {store.run_folder}: the folder cannot be made: "
            f"{error.filename}: {error.strerror}"
        ) from None


def build_model_and_data(config: Config, runtime: Runtime, quiet: bool) -> tuple[GPT, TokenData]:
    """The first weights and the tokenized corpus; the two share a tokenizer.

    With `train.init_from`, weights and tokenizer come from there, a folder or a name on the Hugging Face Hub
    (positions past a shorter `model.context_length` are dropped); otherwise the weights are random, decided
    by `train.seed` alone. Raises UserError where the config asks for another shape or tokenizer.
    """
    length, distributed = config.model.context_length, runtime.distributed
    if config.train.init_from is None:
        with distributed.local_main_first():
            data = prepare(config.data, config.tokenizer, length, quiet)
        shape = GPTConfig(vocab_size=data.tokenizer.vocab_size, **config.model.model_dump())
        return _random_model(shape, config, runtime), data

    name = f"train.init_from = {config.train.init_from}"
    with distributed.local_main_first():
        folder = find_weights(config.train.init_from)
    source, parameters, tokenizer = open_weights(folder)
    if tokenizer is not None:
        _check_tokenizer(config.tokenizer, tokenizer, name)
    fixed = ("n_layer", "n_head", "n_embd", "bias")
    if changed := [key for key in fixed if getattr(config.model, key) != getattr(source, key)]:
        given = ", ".join(f"model.{key} = {getattr(config.model, key)}" for key in changed)
        needed = ", ".join(str(getattr(source, key)) for key in changed)
        raise UserError(f"{given}, but {name} has {needed}")
    if length > source.context_length:
        raise UserError(
            f"model.context_length = {length}: {name} has positions for {source.context_length} tokens only"
        )
    with distributed.local_main_first():
        data = prepare(config.data, tokenizer or config.tokenizer, length, quiet)
    wanted = GPTConfig(vocab_size=data.tokenizer.vocab_size, **config.model.model_dump())
    if wanted.vocab_size != source.vocab_size:
        raise UserError(
            f"the tokenizer's vocab_size = {wanted.vocab_size}, but {name} has {source.vocab_size}"
        )
    model = _random_model(wanted, config, runtime)
    ours = dict(model.named_parameters())
    with torch.no_grad():
        for parameter_name, value in parameters:
            is_positions = parameter_name == "position_embedding.weight"
            copy_full_(ours[parameter_name], value[:length] if is_positions else value)
    return model, data


def _random_model(shape: GPTConfig, config: Config, runtime: Runtime) -> GPT:
    """New weights, decided by `train.seed` alone."""
    torch.manual_seed(config.train.seed)
    return build_model(shape, runtime.distributed, runtime.device, DTYPES[runtime.precision])


def _check_tokenizer(config: TokenizerConfig, found: Tokenizer, name: str) -> None:
    """Refuse a tokenizer that the config asks for where the weights bring another one."""
    given = config.model_dump(include=config.model_fields_set, exclude_none=True)
    for key, value in given.items():
        brought = getattr(found, key, False)  # byte_fallback, which only chars has
        if value != brought:
            raise UserError(
                f"tokenizer.{key} = {value}, but {name} brings a tokenizer with {key} = {brought}, "
                "and the weights mean nothing with another: leave tokenizer out"
            )


def resolve_tokenizer(config: Config, tokenizer: Tokenizer) -> Config:
    """The config with the tokenizer that `train.init_from` brought, so that it tells what was done."""
    if config.train.init_from is None:
        return config
    values: dict[str, object] = {
        "kind": tokenizer.kind,
        "byte_fallback": getattr(tokenizer, "byte_fallback", False),
    }
    if tokenizer.kind == "bpe":
        values["vocab_size"] = tokenizer.vocab_size
    return config.model_copy(update={"tokenizer": TokenizerConfig.model_validate(values)})


def check_resumable(
    saved: TrainingState, config: Config, data: TokenData, environment: dict[str, str]
) -> str | None:
    """Hold a checkpoint against what it is to go on with.

    Returns None where the run goes on bit for bit, else a line that says why it does not. Raises UserError,
    naming what changed, where going on would make no sense.
    """
    now, then = dict(_flatten(config.model_dump(mode="json"))), dict(_flatten(saved.config))
    if {now["model.attention"], then.get("model.attention")} <= {"eager", "additive", "masked"}:
        then["model.attention"] = now["model.attention"]  # the same bits; masked is what eager was called
    changed = [key for key in now if now[key] != then.get(key)]
    fixed = [f"model.{key}" for key in ModelConfig.model_fields if key not in ("dropout", "attention")]
    if data.tokenizer.digest != saved.tokenizer_digest:
        fixed += [key for key in then if key.startswith("tokenizer.")]
    for key in [*fixed, "optim.optimizer"]:
        if key in changed:
            raise UserError(
                f"{key} = {now[key]}, but the run was started with {then.get(key)}; "
                "resume with that, or start a run in another folder"
            )
    if config.train.init_from and data.tokenizer.digest != saved.tokenizer_digest:
        raise UserError(
            f"train.init_from = {config.train.init_from}: its tokenizer is not the one that the run was "
            "started with; put the old one back, or start a run in another folder"
        )
    if data.digest != saved.data_digest:
        raise UserError(
            f"data.corpus = {config.data.corpus}: text or split are not what the run was started with; "
            "put the old text back, or start a run in another folder with train.init_from"
        )
    reasons = [f"{key} was {then.get(key)} and is now {now[key]}" for key in changed if affects_numerics(key)]
    before = {"ranks": "1", **saved.environment}  # the first checkpoints knew of one only
    reasons += [
        f"{key} was {before.get(key)} and is now {value}"
        for key, value in environment.items()
        if before.get(key) != value
    ]
    return "resumed, but not bit for bit, because " + "; ".join(reasons) if reasons else None


def latest_checkpoint(
    store: CheckpointStore, distributed: DistributedContext
) -> tuple[Checkpoint | None, list[str]]:
    """`store.latest()` on every rank: the writing one reads, and tells the others."""
    checkpoint, notes = store.latest() if distributed.is_main else (None, [])
    state = distributed.broadcast_text(checkpoint.state.model_dump_json() if checkpoint else "")
    if not state or distributed.world_size == 1:
        return checkpoint, notes
    model, optimizer = (checkpoint.model, checkpoint.optimizer) if checkpoint else ({}, {})
    told = TrainingState.model_validate_json(state)
    return Checkpoint(
        told.step, distributed.broadcast_state_dict(model), distributed.broadcast_state_dict(optimizer), told
    ), notes


def restore(checkpoint: Checkpoint, model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Weights and optimizer state of a checkpoint; DamagedError where they are not those of this model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            weights = checkpoint.model.get(name)
            if weights is None or weights.shape != parameter.shape:
                raise DamagedError(f"step {checkpoint.step}: model.safetensors does not fit {name}")
            copy_full_(parameter, weights)
    if checkpoint.state.grad_scaler and not checkpoint.optimizer:
        return  # every update so far was skipped, as float16 gradients overflowed
    try:
        load_optimizer_tensors(model, optimizers, checkpoint.optimizer)
    except ValueError as error:
        raise DamagedError(f"step {checkpoint.step}: training/optimizer.safetensors: {error}") from None


def affects_numerics(key: str) -> bool:
    """Whether a config key decides the weights; the rest is reporting, or stands in the environment."""
    reporting = ("out_dir", "init_from", "keep_checkpoints", "trackers")
    section, _, name = key.partition(".")
    return section not in ("data", "tokenizer", "runtime") and not (
        name.endswith(("_interval", "_patience", "eval_tokens")) or name in reporting
    )


def _flatten(sections: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, keys in sections.items():
        for key, value in keys.items():
            yield f"{section}.{key}", value
