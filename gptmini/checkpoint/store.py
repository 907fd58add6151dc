"""The checkpoints of a run: save, latest, best, prune, lock; and `load_model` for everything that reads.

A checkpoint is the folder of one step, `checkpoints/step-00001000/`: a Hugging Face GPT-2 directory, plus
`training/` to resume from, plus `manifest.json`. At every instant every step's folder is complete.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from gptmini import atomic_io
from gptmini.checkpoint.gpt2_directory import build_model, gpt2_files, read_gpt2
from gptmini.checkpoint.manifest import FORMAT_VERSION, MANIFEST, check_format_version, verify, write_files
from gptmini.checkpoint.safetensors_io import TensorFiles, json_bytes, read_json
from gptmini.config import GPTConfig
from gptmini.data.tokenizers import Tokenizer, load_tokenizer
from gptmini.errors import DamagedError, UserError
from gptmini.model import GPT
from gptmini.schema import Section, validate

_STEP_FOLDER = re.compile(r"step-(\d{8,18})")


class TrainingState(Section):
    """What a run resumes from besides weights and optimizer state; training/state.json."""

    format_version: int = FORMAT_VERSION
    step: int = Field(ge=0, description="Optimizer steps taken.")
    tokens: int = Field(ge=0, description="Tokens trained on so far.")
    val_loss: float | None = Field(None, description="Validation loss at this step, if it was evaluated.")
    best_val_loss: float | None = Field(None, description="The lowest validation loss so far.")
    best_step: int | None = Field(None, ge=0, description="The step that had it.")
    evaluations_since_best: int = Field(0, ge=0, description="For early stopping.")
    grad_scaler: dict[str, float] | None = Field(None, description="State of the fp16 gradient scaler.")
    config: dict[str, Any] = Field(description="The resolved config of the run.")
    data_digest: str = Field(description="Digest of the token file.")
    tokenizer_digest: str = Field(description="Digest of the tokenizer.")
    environment: dict[str, str] = Field(description="What the bits depend on: torch version, threads, ...")
    kernels: str | None = Field(
        None, description="Digest of what the matrix kernels compute; see kernels.py."
    )


@dataclass(frozen=True)
class Checkpoint:
    """A training run between two steps."""

    step: int
    model: Mapping[str, Tensor]
    """GPT's state dict."""
    optimizer: Mapping[str, Tensor]
    """Optimizer state under flat names."""
    state: TrainingState


def load_model(path: str | Path, device: str = "cpu") -> tuple[GPT, Tokenizer | None]:
    """The model, in eval mode with float32 weights, and the tokenizer of a checkpoint.

    `path` is a run folder (its best checkpoint, else its latest), one step's folder, or any Hugging Face
    GPT-2 directory with safetensors weights, whole or sharded; the tokenizer is None where it holds none.
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
    if not path.is_dir():
        raise UserError(f"{path}: no such folder: give a run folder, a step's folder or a GPT-2 directory")
    if (path / "checkpoints").is_dir():
        store = CheckpointStore(path, keep=1)
        steps = store.steps()
        if not steps:
            raise UserError(f"{path}: has no checkpoint yet")
        path = store.best() or store.path(steps[-1])
    if (path / MANIFEST).exists() or (path / "training").exists():
        verify(path)
    elif not (path / "config.json").exists():
        raise UserError(f"{path}: holds no checkpoint: there is neither checkpoints/ nor config.json in it")
    config, parameters = read_gpt2(path)
    return config, parameters, load_tokenizer(path)


class CheckpointStore:
    """The checkpoints of one run folder. Hold `lock()` while saving.

    `keep` is how many of the newest checkpoints stay, besides the one with the lowest validation loss.
    """

    def __init__(self, run_folder: Path, keep: int):
        self.run_folder = run_folder
        self.folder = run_folder / "checkpoints"
        self.keep = keep
        self._check_lock: Callable[[], None] | None = None  # while it is held

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training in the run folder; raises InUseError if one does."""
        with atomic_io.lock(self.run_folder / ".lock", f"run folder {self.run_folder}") as self._check_lock:
            yield
        self._check_lock = None

    def clean(self) -> None:
        """Remove what a killed run left half-written. Hold the lock."""
        atomic_io.clean_leftovers(self.run_folder, r"config\.yaml|(metrics|samples)\.jsonl")
        atomic_io.clean_leftovers(self.folder, _STEP_FOLDER.pattern)

    def save(self, checkpoint: Checkpoint, config: GPTConfig, tokenizer: Tokenizer) -> Path:
        """Write one step's folder, then remove checkpoints that are no longer kept; returns the folder.

        A step that is there already and verifies is left as it is. Raises OSError naming path and cause if
        the disk fails, or if the locked run folder is no longer there; every checkpoint saved before stays.
        """
        # somebody may have moved or removed the run folder since the last save
        if self._check_lock is not None:
            self._check_lock()
        path = self.path(checkpoint.step)
        # a resumed run reaches a step again whose folder it found damaged, or saves the step it stopped at
        if os.path.lexists(path):
            try:
                verify(path)
                return path
            except DamagedError:
                atomic_io.remove_folder(path)
        atomic_io.make_folder(self.folder)
        # under a temporary name, the manifest last, read back, and renamed into place whole
        with atomic_io.new_folder(path) as folder:
            write_files(
                folder,
                {
                    "training/optimizer.safetensors": checkpoint.optimizer,  # the longest first
                    **gpt2_files(checkpoint.model, config, tokenizer),
                    "training/state.json": json_bytes(checkpoint.state.model_dump(mode="json")),
                },
            )
        self._prune(checkpoint.step)  # only now that the new one is complete
        return path

    def path(self, step: int) -> Path:
        """The folder of a step, whether it exists or not."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """The steps that have a folder, in order."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return sorted(int(match[1]) for name in names if (match := _STEP_FOLDER.fullmatch(name)))

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that verifies, and one line for each newer one that does not and why.

        None if there is no checkpoint at all. Raises DamagedError if there are some and none verifies,
        UserError if the newest was written by a later version of gptmini.
        """
        skipped: list[str] = []
        for step in reversed(self.steps()):
            # every file is compared with the manifest before any of it is used
            try:
                verify(self.path(step))
                return _read_checkpoint(self.path(step)), skipped
            except DamagedError as error:
                skipped.append(str(error))
        if skipped:
            raise DamagedError(f"{self.folder}: no checkpoint is undamaged: {'; '.join(skipped)}")
        return None, []

    def best(self) -> Path | None:
        """The step's folder with the lowest recorded validation loss, the earliest of equals."""
        losses = []
        for step in self.steps():
            with suppress(DamagedError):
                if (loss := _read_state(self.path(step)).val_loss) is not None:
                    losses.append((loss, step))
        return self.path(min(losses)[1]) if losses else None

    def _prune(self, newest: int) -> None:
        """Remove all but the best and the `keep` newest checkpoints up to the one just saved.

        A later one is damaged, or the run would have resumed from it: it does not count as kept.
        """
        best = self.best()
        for step in [step for step in self.steps() if step <= newest][: -self.keep]:
            if self.path(step) != best:
                atomic_io.remove_folder(self.path(step))


def _read_state(step_folder: Path) -> TrainingState:
    path = step_folder / "training" / "state.json"
    values = read_json(path)
    check_format_version(values, path)
    try:
        return validate(TrainingState, values, str(path))
    except UserError as error:
        raise DamagedError(str(error)) from None


def _read_checkpoint(step_folder: Path) -> Checkpoint:
    state = _read_state(step_folder)
    model = dict(read_gpt2(step_folder)[1])
    # cloned out of the memory-mapped file, which may be pruned while they are in use
    tensors = TensorFiles([step_folder / "training" / "optimizer.safetensors"])
    optimizer = {name: tensor.clone() for name, tensor in tensors.items()}
    return Checkpoint(state.step, model, optimizer, state)
