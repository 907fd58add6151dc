"""The run folder: claimed by one process, and resumed from its newest good checkpoint."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from gptmini.atomic_io import make_folder
from gptmini.checkpoint.folders import is_step_folder
from gptmini.checkpoint.state import Checkpoint, TrainingState, read_state
from gptmini.checkpoint.store import CheckpointStore
from gptmini.config import Config, ModelConfig, dump_config, flatten_config, load_config
from gptmini.data.prepare import corpus_names, require_same_text
from gptmini.data.token_files import TokenData
from gptmini.data.tokenizers import Tokenizer, load_tokenizer
from gptmini.distributed.context import DistributedContext, copy_full_
from gptmini.errors import DamagedError, UserError, path_error
from gptmini.model import GPT
from gptmini.schema import validate
from gptmini.training.log_files import LOG_FILES, set_aside
from gptmini.training.optim import Optimizer, load_optimizer_tensors, optimizer_tensors
from gptmini.training.progress import Progress
from gptmini.training.runtime import Runtime


def refuse_used_folder(store: CheckpointStore, resume: bool) -> None:
    """Keep a run out of another's folder, and away from a user's own files.

    Raises UserError unless the run may begin or resume there, InUseError while another one is training.
    """
    if store.run_folder.exists() and not store.run_folder.is_dir():
        raise UserError(f"train.out_dir = {store.run_folder}: is a file, but a run needs a folder")
    # Every run has made the lock; where there is none, nothing is written before the folder is accepted.
    with store.lock() if (store.run_folder / ".lock").exists() else nullcontext():
        _refuse_another_run(store, resume)


@contextmanager
def claim_run_dir(store: CheckpointStore, resume: bool, distributed: DistributedContext) -> Iterator[None]:
    """Make and lock the run folder for as long as the block lasts, and remove what a killed run left.

    Only the main rank writes, so the others do nothing. Raises UserError if the folder cannot be made.
    """
    if not distributed.is_main:
        yield
        return
    try:
        make_folder(store.run_folder)
    except OSError as error:
        problem = f"the folder cannot be made: {error.filename}"
        raise path_error(f"train.out_dir = {store.run_folder}", error, problem) from None
    with store.lock():
        _refuse_another_run(store, resume)  # again: a faster process may have begun one meanwhile
        store.clean()
        for name in LOG_FILES if not resume else ():
            set_aside(store.run_folder / name)  # of a run that ended before its first checkpoint
        yield


def _refuse_another_run(store: CheckpointStore, resume: bool) -> None:
    folder, reason = store.run_folder, None
    present = [name for name in ("config.yaml", *LOG_FILES) if (folder / name).exists()]
    has_config = "config.yaml" in present
    if irregular := [name for name in present if not (folder / name).is_file()]:
        reason = f"its {irregular[0]} is not a regular file; remove it"
    elif stray := store.irregular():
        reason = f"its {stray.relative_to(folder)} is not a folder; remove it"
    elif store.steps():
        found = "holds a run already"
        if not has_config:
            found = "has no config.yaml, but checkpoints/ holds steps of another run"
        reason = None if resume else f"{found}; continue it with --resume (resume=True in Python)"
    elif place := _place_among_checkpoints(folder):
        raise UserError(f"train.out_dir = {folder}: {place}; choose another folder")
    # A run that has saved nothing may be begun anew; what is a user's own may not be overwritten.
    elif has_config and not _is_of_a_run(folder / "config.yaml"):
        reason = "holds a config.yaml that no run of this version wrote; rename it"
    elif present and not has_config:
        reason = f"holds a {present[0]}, but no run; rename it"
    if reason:
        raise UserError(f"train.out_dir = {folder}: {reason}, or choose another folder")


def _place_among_checkpoints(folder: Path) -> str | None:
    """How a folder is part of a model or of another run, if it is."""
    if is_step_folder(folder) or ((folder / "config.json").exists() and any(folder.glob("*.safetensors"))):
        return "is a checkpoint"
    for path in (Path(os.path.abspath(folder)), folder.resolve()):  # as it is called, and where it lies
        for above in (path, *path.parents):
            if above.name == "checkpoints" and CheckpointStore(above.parent, keep=1).steps():
                return "lies in the checkpoints of a run"
    return None


def _is_of_a_run(config_file: Path) -> bool:
    """Whether a config.yaml is exactly what a run writes, without a comment or value of the user's own."""
    try:
        return config_file.read_bytes() == dump_config(load_config(config_file)).encode()
    except UserError:
        return False


def saved_tokenizer(store: CheckpointStore, config: Config) -> Tokenizer | None:
    """The tokenizer of the run's checkpoints: a resume needs neither init_from's source nor another folder.

    None without a checkpoint, or where the config asks for another tokenizer: that is made as at the start,
    and `restore` compares the two. So are the characters of kind chars, which the text itself brings.
    """
    asked = config.tokenizer
    needed = asked.model_dump(exclude_unset=True, exclude_none=True)
    for step in reversed(store.steps()):
        with suppress(DamagedError, UserError):  # `restore` names what is wrong with it
            state, tokenizer = read_state(store.path(step)), load_tokenizer(store.path(step))
            began_with = validate(Config, state.config, "training/state.json").tokenizer
            if config.train.init_from is not None:  # which brought what the config does not ask for
                asked = began_with.model_copy(update=needed)
            if tokenizer is not None and tokenizer.digest == state.tokenizer_digest:
                of_text = config.train.init_from is None and tokenizer.kind == "chars"
                return tokenizer if asked == began_with and not of_text else None
    return None


@dataclass
class RunState:
    """All that a training step changes, and so what a checkpoint holds.

    Nothing about randomness is among it: data order and dropout are functions of the step.
    """

    model: GPT
    optimizers: list[Optimizer]
    scaler: torch.amp.GradScaler
    progress: Progress


def save_checkpoint(
    store: CheckpointStore, state: RunState, config: Config, data: TokenData, runtime: Runtime
) -> None:
    """Commit a checkpoint of this step. All ranks must call it; the main one writes."""
    saved = TrainingState(
        **asdict(state.progress),
        grad_scaler=state.scaler.state_dict() or None,
        config=config.model_dump(mode="json"),
        data_digest=data.digest,
        tokenizer_digest=data.tokenizer.digest,
        environment=runtime.environment(),
        kernels=runtime.kernels,
    )
    # A rank of a sharded model holds a part of each tensor only: gather them on the main rank.
    gather = runtime.distributed.gather_full_state_dict
    weights = gather({name: parameter.detach() for name, parameter in state.model.named_parameters()})
    optimizer = gather(optimizer_tensors(state.model, state.optimizers))
    if runtime.distributed.is_main:
        store.save(Checkpoint(saved.step, weights, optimizer, saved), state.model.config, data.tokenizer)


def restore(
    store: CheckpointStore, state: RunState, config: Config, data: TokenData, runtime: Runtime
) -> list[str]:
    """Load the newest good checkpoint, if there is one; returns lines that the user should read.

    Raises UserError if the run cannot be continued like this, DamagedError if a file does not fit the model.
    """
    checkpoint, notes = _latest_checkpoint(store, runtime.distributed)
    if checkpoint is None:
        return [f"no checkpoint to resume in {store.run_folder}: starting from step 0"]
    saved, where = checkpoint.state, f"step {checkpoint.step}"
    if saved.step > config.train.max_steps:
        raise UserError(
            f"train.max_steps = {config.train.max_steps}: the run is at step {saved.step} already; "
            "give a larger number to continue it"
        )
    difference = check_resumable(saved, config, data, runtime)
    with torch.no_grad():
        for name, parameter in state.model.named_parameters():
            weights = checkpoint.model.get(name)
            if weights is None or weights.shape != parameter.shape:
                raise DamagedError(f"{where}: model.safetensors does not fit {name}")
            copy_full_(parameter, weights)
    # There is no optimizer state where float16 gradients overflowed in every step so far.
    if checkpoint.optimizer or not saved.grad_scaler:
        try:
            load_optimizer_tensors(state.model, state.optimizers, checkpoint.optimizer)
        except ValueError as error:
            raise DamagedError(f"{where}: training/optimizer.safetensors: {error}") from None
    if saved.grad_scaler:
        state.scaler.load_state_dict(saved.grad_scaler)
    for name in asdict(state.progress):
        setattr(state.progress, name, getattr(saved, name))
    if state.progress.is_finished(config.train):  # no step follows that could give other bits
        longer = "a larger train.max_steps (or early_stop_patience) continues it; in a shell also --minutes N"
        difference = f"the run has ended at {where}: nothing is trained; {longer}"
    return [*notes, difference or f"resumed at {where}"]


def _latest_checkpoint(
    store: CheckpointStore, distributed: DistributedContext
) -> tuple[Checkpoint | None, list[str]]:
    """`store.latest()` on every rank: the main rank reads the files and broadcasts."""
    checkpoint, notes = store.latest() if distributed.is_main else (None, [])
    state_text = distributed.broadcast_text(checkpoint.state.model_dump_json() if checkpoint else "")
    if not state_text or distributed.world_size == 1:
        return checkpoint, notes
    state = TrainingState.model_validate_json(state_text)
    model, optimizer = (checkpoint.model, checkpoint.optimizer) if checkpoint else ({}, {})
    broadcast = distributed.broadcast_state_dict
    return Checkpoint(state.step, broadcast(model), broadcast(optimizer), state), notes


def check_resumable(saved: TrainingState, config: Config, data: TokenData, runtime: Runtime) -> str | None:
    """Compare what a checkpoint was trained with to what is to continue it.

    Returns None if the resumed run gives the same bits as an uninterrupted one, else a line that says why it
    does not. Raises UserError, naming the key, if the checkpoint cannot be continued like this.
    """
    # Through the schema, so that a key or value which was renamed since compares equal to its new name.
    old_config = validate(Config, saved.config, "the config saved in training/state.json")
    now, then = flatten_config(config), flatten_config(old_config)
    if {now["model.attention"], then["model.attention"]} == {"eager", "additive"}:
        then["model.attention"] = now["model.attention"]  # the two give the same bits
    changed = [key for key in now if now[key] != then[key]]

    # Other shapes do not fit the weights, another tokenizer or optimizer not what they have learned.
    fixed = [f"model.{key}" for key in ModelConfig.model_fields if key not in ("dropout", "attention")]
    if data.tokenizer.digest != saved.tokenizer_digest:
        fixed += [key for key in then if key.startswith("tokenizer.")]
    for key in [*fixed, "optim.optimizer"]:
        if key in changed:
            raise UserError(
                f"{key} = {now[key]}, but the run was started with {then[key]}; "
                "resume with that, or start a run in another folder"
            )
    # Another text would be in another order: the steps so far would say nothing about what has been seen.
    require_same_text(data.digest, saved.data_digest, ", ".join(corpus_names(config.data)))

    # Everything else may change, but not silently where it changes the bits.
    reasons = [f"{key} was {then[key]} and is now {now[key]}" for key in changed if affects_numerics(key)]
    before = {"ranks": "1", **saved.environment}  # the first checkpoints were of one rank, and did not say so
    reasons += [
        f"{key} was {before.get(key)} and is now {value}"
        for key, value in runtime.environment().items()
        if before.get(key) != value
    ]
    # Even on the same machine, which may be told to use others (MKL_CBWR, for one).
    if saved.kernels not in (None, runtime.kernels):
        reasons.append("the matrix kernels differ")
    return "resumed, but not bit for bit, because " + "; ".join(reasons) if reasons else None


def affects_numerics(key: str) -> bool:
    """Whether a config key, such as `optim.lr`, decides the weights."""
    section, name = key.split(".")
    # Data and tokenizer are compared by their digests, runtime by the environment.
    if section in ("data", "tokenizer", "runtime"):
        return False
    # These only change what is reported or kept.
    reporting = ("out_dir", "init_from", "keep_checkpoints", "trackers")
    return not (name.endswith(("_interval", "_patience", "eval_tokens")) or name in reporting)
