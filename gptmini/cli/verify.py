"""gptmini verify: what of a run folder or checkpoint is as it was written, line by line."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from gptmini.checkpoint.folders import is_run_folder, is_step_folder, no_such_folder
from gptmini.checkpoint.manifest import verify
from gptmini.checkpoint.state import read_state
from gptmini.checkpoint.store import CheckpointStore, open_weights
from gptmini.config import Config, flatten_config, load_config
from gptmini.data.prepare import find_prepared
from gptmini.data.tokenizers import load_tokenizer
from gptmini.errors import DamagedError, UserError
from gptmini.schema import Section, validate
from gptmini.training.log_files import LOG_FILES, read_log

Part = tuple[object, Callable[[], str | None]]
"""What is checked, and its check: what was found, or None if it has gone. Raises DamagedError."""


def verify_folder(path: Path) -> Iterator[str]:
    """A line for each part of a run folder, a step's folder or a GPT-2 directory; changes nothing.

    A run may train meanwhile. Raises DamagedError at the end if a part is not what was written, UserError
    where there is no such folder.
    """
    if path.is_file():
        raise UserError(f"{path}: is a file; give the run's folder, a step's folder or a GPT-2 directory")
    if not path.is_dir():
        raise no_such_folder(path)
    is_model = is_step_folder(path) or (path / "config.json").exists()  # beside it, config.yaml is a stray
    is_run = is_run_folder(path) or ((path / "config.yaml").exists() and not is_model)
    damaged = []
    for name, check in _run_parts(path) if is_run else [(path, partial(_check_folder, path))]:
        try:
            found = check()
        except DamagedError as error:
            damaged.append(str(error))
            found = "not as it was written"
        if found is not None:
            yield f"{name}: {found}"
    if damaged:
        raise DamagedError("; ".join(damaged))


def _run_parts(run: Path) -> Iterator[Part]:
    store = CheckpointStore(run, keep=1)
    yield run / "config.yaml", partial(_check_config, store)
    for name, schema in LOG_FILES.items():
        if (run / name).exists():
            yield run / name, partial(_check_log, run / name, schema)
    for step in store.steps():
        yield store.path(step), partial(_check_kept_step, store, step)
    yield "prepared tokens", partial(_check_tokens, store)


def _check_config(store: CheckpointStore) -> str:
    path = store.run_folder / "config.yaml"
    if not path.exists():
        raise DamagedError(f"{path}: is missing; train CONFIG.yaml --resume writes it anew")
    try:
        config = load_config(path)
    except UserError as error:
        raise DamagedError(str(error)) from None
    if (state := store.newest_state()) is None:
        return "readable; no checkpoint to compare it with"
    now, then = flatten_config(config), flatten_config(validate(Config, state.config, "state.json"))
    changed = [f"{key} was {then[key]} and is now {now[key]}" for key in now if now[key] != then[key]]
    return f"readable; at step {state.step} {', '.join(changed)}" if changed else "whole"


def _check_log(path: Path, schema: type[Section]) -> str:
    return f"whole, {sum(1 for _ in read_log(path, schema)):,} lines"


def _check_kept_step(store: CheckpointStore, step: int) -> str | None:
    try:
        return _check_step(store.path(step))
    except DamagedError:
        if step in store.steps():
            raise
        return None  # a run that trains has removed it


def _check_step(folder: Path) -> str:
    verify(folder)
    loss = read_state(folder).val_loss
    return "whole" if loss is None else f"whole, validation loss {loss:.4f}"


def _check_folder(folder: Path) -> str:
    if is_step_folder(folder):
        return _check_step(folder)
    numbers = sum(parameter.numel() for _, parameter in open_weights(folder)[1])
    return f"readable, {numbers:,} parameters; no manifest.json to compare it with"


def _check_tokens(store: CheckpointStore) -> str:
    """Check the token files that the run was trained on: all of them are read when they are opened."""
    state, data = store.newest_state(), None
    if state is not None and (tokenizer := store.read_best(load_tokenizer)):
        config = validate(Config, state.config, "state.json")
        data = find_prepared(config.data, tokenizer, state.data_digest)
    if data is None:
        return "not in the cache, or the text has changed: a resume prepares and compares it again"
    return f"whole, {len(data.train):,} of training and {len(data.val):,} of validation"
