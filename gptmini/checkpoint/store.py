"""The checkpoints of a run: save, latest, best, prune, lock; and `load_model` for everything that reads.

A checkpoint is the folder of one step, `checkpoints/step-00001000/`: a Hugging Face GPT-2 directory, plus
`training/` to resume from, plus `manifest.json`. At every instant every step's folder is complete. Files that
others put beside these are left alone.
"""

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from gptmini import atomic_io
from gptmini.checkpoint.folders import holds_checkpoint, is_run_folder, is_step_folder, no_such_folder
from gptmini.checkpoint.gpt2_directory import (
    build_model,
    check_vocabulary,
    drop_padding,
    gpt2_files,
    read_gpt2,
)
from gptmini.checkpoint.manifest import (
    MANIFEST,
    OPTIMIZER,
    STATE,
    fingerprint,
    read_manifest,
    verify,
    write_files,
)
from gptmini.checkpoint.safetensors_io import json_bytes, printable
from gptmini.checkpoint.state import Checkpoint, TrainingState, read_checkpoint, read_state
from gptmini.config import GPTConfig
from gptmini.data.tokenizers import Tokenizer, load_tokenizer
from gptmini.errors import DamagedError, UserError
from gptmini.lock import lock
from gptmini.model import GPT

_STEP_FOLDER = re.compile(r"step-(\d{8,18})")
_REMOVED = ".gptmini-removed-"  # the prefix of a step's folder while its files are deleted
_Found = TypeVar("_Found")


def load_model(path: str | Path, device: str = "cpu") -> tuple[GPT, Tokenizer | None]:
    """The model, in eval mode with float32 weights, and the tokenizer of a checkpoint.

    `path` is a run folder (its best checkpoint, else its latest), one step's folder, or any Hugging Face
    GPT-2 directory with safetensors weights, whole or sharded; the tokenizer is None where it holds none.
    Rows that pad the embedding past the tokenizer are dropped.
    Takes as much memory as the weights in float32, plus one tensor.

    Raises UserError if there is no checkpoint, or one that this version cannot read; DamagedError, naming
    the file, if it is not what was written.
    """
    config, parameters, tokenizer = open_weights(path)
    return build_model(config, parameters).to(device).eval(), tokenizer


def open_weights(path: str | Path) -> tuple[GPTConfig, Iterator[tuple[str, Tensor]], Tokenizer | None]:
    """What `load_model` builds a model from, with the float32 parameters one by one, each read when needed.

    So a rank that keeps a shard of each parameter never holds all of them. Raises what `load_model` does,
    also while the parameters are read.
    """
    # a run folder leads to one of its steps; only folders of ours have a manifest
    path = Path(path).expanduser()
    if path.is_file():
        raise UserError(
            f"{path}: is a file, but a checkpoint is a folder; gptmini import-nanogpt makes one of nanoGPT's"
        )
    if not path.is_dir():
        raise no_such_folder(path)
    if is_run_folder(path):
        return CheckpointStore(path, keep=1).read_best(_open_folder)
    return _open_folder(path)


def _open_folder(path: Path) -> tuple[GPTConfig, Iterator[tuple[str, Tensor]], Tokenizer | None]:
    """`open_weights` of a step's folder or a GPT-2 directory."""
    if is_step_folder(path):
        verify(path)
    elif not (path / "config.json").exists():
        raise UserError(f"{path}: holds no checkpoint: there is neither checkpoints/ nor config.json in it")
    config, parameters = read_gpt2(path)
    tokenizer = load_tokenizer(path)
    if tokenizer is None:
        return config, parameters, None
    try:
        check_vocabulary(tokenizer, config.vocab_size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return *drop_padding(config, parameters, tokenizer), tokenizer


class CheckpointStore:
    """The checkpoints of one run folder. Hold `lock()` while saving.

    `keep` is how many of the newest checkpoints stay, besides the one with the lowest validation loss.
    """

    def __init__(self, run_folder: Path, keep: int):
        self.run_folder = run_folder
        self.folder = run_folder / "checkpoints"
        self.keep = keep
        self._check_lock: Callable[[], None] | None = None  # while it is held
        self._whole: dict[int, object] = {}  # the fingerprints of steps that were verified

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training in the run folder; raises InUseError if one does."""
        with lock(self.run_folder / ".lock", f"run folder {self.run_folder}") as self._check_lock:
            yield
        self._check_lock = None

    def clean(self) -> None:
        """Remove what a killed run left half-written. Hold the lock."""
        atomic_io.clean_leftovers(self.run_folder, r"config\.yaml|(metrics|samples)\.jsonl")
        atomic_io.clean_leftovers(self.folder, _STEP_FOLDER.pattern)
        for removed in self.folder.glob(f"{_REMOVED}step-*"):
            self._delete_files(removed)

    def save(self, checkpoint: Checkpoint, config: GPTConfig, tokenizer: Tokenizer) -> Path:
        """Write one step's folder, then remove checkpoints that are no longer kept; returns the folder.

        A step that is there already and verifies is left as it is. Raises OSError naming path and cause if
        the disk fails, or if the locked run folder is no longer there; every checkpoint saved before stays.
        """
        # somebody may have moved or removed the run folder since the last save
        if self._check_lock is not None:
            self._check_lock()
        path = self.path(checkpoint.step)
        contents = {
            OPTIMIZER: checkpoint.optimizer,  # the longest first
            **gpt2_files(checkpoint.model, config, tokenizer),
            STATE: json_bytes(checkpoint.state.model_dump(mode="json")),
        }
        # a resumed run reaches a step again whose folder it found damaged, or saves the step it stopped at
        if os.path.lexists(path):
            try:
                verify(path)
                return path
            except DamagedError:
                self.remove(path, contents)
        atomic_io.make_folder(self.folder)
        if os.path.lexists(path):  # with files of others in it: complete when the manifest is there
            write_files(path, contents)
            atomic_io.sync_folders(path)
        else:
            # under a temporary name, the manifest last, read back, and renamed into place whole
            with atomic_io.new_folder(path) as folder:
                write_files(folder, contents)
        self._whole[checkpoint.step] = fingerprint(path)
        self._prune(checkpoint.step)  # only now that the new one is complete
        return path

    def path(self, step: int) -> Path:
        """The folder of a step, whether it exists or not."""
        return self.folder / f"step-{step:08d}"

    def irregular(self) -> Path | None:
        """What stands in the way of a folder that the store will make, or None; a step's link is replaced."""
        steps = (path for path in self.folder.glob("step-*") if not path.is_symlink())
        places = [self.folder, *(path for path in steps if _STEP_FOLDER.fullmatch(path.name))]
        return next((path for path in places if os.path.lexists(path) and not path.is_dir()), None)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, be it damaged, in order."""
        while True:
            names = os.listdir(self.folder) if self.folder.is_dir() else []
            found = sorted(int(match[1]) for name in names if (match := _STEP_FOLDER.fullmatch(name)))
            steps = [step for step in found if holds_checkpoint(self.path(step))]
            # a run that trains may have replaced the only one since it was listed
            if steps or all(os.path.lexists(self.path(step)) for step in found):
                return steps

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that verifies, and one line for each newer one, and the best, that does not.

        None if there is no checkpoint at all. Raises DamagedError if there are some and none verifies,
        UserError if the newest was written by a later version of gptmini.
        """
        found, damaged = self._read_first(read_checkpoint)
        lines, best = [f"skipped {error}" for error in damaged], self.best()
        if found and best and int(best.name.removeprefix("step-")) < found.step:
            try:
                verify(best)
            except DamagedError as error:
                lines.append(f"the best checkpoint cannot be read: {printable(error)}")
        return found, lines

    def best(self) -> Path | None:
        """The step's folder with the lowest recorded validation loss, the earliest of equals."""
        states = self._states()
        losses = [(state.val_loss, step) for step, state in states.items() if state.val_loss is not None]
        best = min(losses)[1] if losses else None
        # one whose own state is damaged is still named as the best by the newest
        named = states[max(states)].best_step if states else None
        if named is not None and named not in states and holds_checkpoint(self.path(named)):
            best = named
        return None if best is None else self.path(best)

    def read_best(self, read: Callable[[Path], _Found]) -> _Found:
        """What `read` makes of the best checkpoint's folder, else of the newest.

        Where that one is damaged, a line on standard error says so, and the newest whole one is read. Raises
        UserError where there is no checkpoint, DamagedError where none is whole.
        """
        found, damaged = self._read_first(lambda folder: (read(folder), folder.name), best_first=True)
        if found is None:
            raise UserError(f"{self.run_folder}: has no checkpoint yet")
        if damaged:
            print(f"{'; '.join(damaged)}; {found[1]} is read instead", file=sys.stderr)
        return found[0]

    def newest_state(self) -> TrainingState | None:
        """The state of the newest step whose state.json is what was written; None if there is none."""
        with suppress(DamagedError):
            return self._read_first(read_state)[0]
        return None

    def _read_first(
        self, read: Callable[[Path], _Found], *, best_first: bool = False
    ) -> tuple[_Found | None, list[str]]:
        """What `read` makes of the newest checkpoint that is not damaged, and a line for each that is.

        Beside a run that trains, a checkpoint may be pruned before it is read: then it is chosen again.
        """
        while True:
            folders, damaged = [self.path(step) for step in reversed(self.steps())], []
            if best_first:
                best = self.best()
                folders.sort(key=lambda folder: folder != best)
            for folder in folders:
                try:
                    found = read(folder)
                except (DamagedError, UserError, FileNotFoundError) as error:
                    if not holds_checkpoint(folder):
                        break
                    if not isinstance(error, DamagedError):
                        raise
                    damaged.append(printable(error))
                    continue
                if not holds_checkpoint(folder):  # the last file may have been missing
                    break
                return found, damaged
            else:
                if damaged:
                    raise DamagedError(f"{self.folder}: no checkpoint is undamaged: {'; '.join(damaged)}")
                return None, []

    def _states(self) -> dict[int, TrainingState]:
        """The state of each step whose state.json is what was written."""
        states = {}
        for step in self.steps():
            with suppress(DamagedError):
                states[step] = read_state(self.path(step))
        return states

    def _is_whole(self, step: int) -> bool:
        """Whether a checkpoint is what was written: read once, and again after any write to its files."""
        try:
            now = fingerprint(self.path(step))
            if self._whole.get(step) != now:
                verify(self.path(step))
                self._whole[step] = now
        except DamagedError:
            return False
        return True

    def _prune(self, newest: int) -> None:
        """Remove all but the best and the `keep` newest checkpoints up to the one just saved.

        Those that stay are verified first, and only one known to be worse than the best of them goes: where
        its own loss cannot be believed, or is lower, it stays. A later one than `newest` is damaged, or the
        run would have resumed from it: it does not count as kept.
        """
        steps = [step for step in self.steps() if step <= newest]
        if len(steps) <= self.keep:
            return
        # What stays, each compared with its manifest: the newest, and the best.
        states = self._states()
        kept = set(islice(filter(self._is_whole, reversed(steps)), self.keep))
        losses = {step: state.val_loss for step, state in states.items() if state.val_loss is not None}
        ranking = sorted((loss, step) for step, loss in losses.items())
        best = next((entry for entry in ranking if self._is_whole(entry[1])), (math.inf, 0))
        # What goes: a state that can be believed, and says that the checkpoint is worse.
        for step in sorted(states.keys() & {*steps} - kept):
            if best < (losses.get(step, math.inf), step):
                self.remove(self.path(step))

    def remove(self, path: Path, names: Iterable[str] = ()) -> None:
        """Delete the files that a checkpoint's manifest lists, and `names`; those of others stay there."""
        removed = self.folder / f"{_REMOVED}{path.name}"
        atomic_io.rename(path, removed)  # a reader sees all of it or nothing
        self._delete_files(removed, names)

    def _delete_files(self, removed: Path, names: Iterable[str] = ()) -> None:
        path = self.folder / removed.name.removeprefix(_REMOVED)
        if not removed.is_symlink():  # such a one goes as a link, whatever it leads to
            with suppress(DamagedError):
                names = {*names, *read_manifest(removed)}
        for listed in ({*names}, {MANIFEST}):  # which is the last: after a crash it says what is to go
            if os.path.lexists(removed):
                atomic_io.remove_files(removed, listed, path)
        if removed.exists():
            atomic_io.rename(removed, path)
