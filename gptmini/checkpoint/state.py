"""What a run resumes from: the state in a step's folder besides the files of a GPT-2 directory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from gptmini.checkpoint.gpt2_directory import read_gpt2
from gptmini.checkpoint.manifest import FORMAT_VERSION, OPTIMIZER, STATE, check_format_version, verify
from gptmini.checkpoint.safetensors_io import TensorFiles, read_json
from gptmini.errors import DamagedError, UserError
from gptmini.schema import Section, validate


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


def read_state(step_folder: Path) -> TrainingState:
    """The state that a checkpoint holds, compared with its manifest."""
    verify(step_folder, only=[STATE])
    path = step_folder / STATE
    values = read_json(path)
    check_format_version(values, path)
    try:
        return validate(TrainingState, values, str(path))
    except UserError as error:
        raise DamagedError(str(error)) from None


def read_checkpoint(step_folder: Path) -> Checkpoint:
    """All that a checkpoint holds; every file is compared with the manifest before any of it is used."""
    verify(step_folder)
    state = read_state(step_folder)
    model = dict(read_gpt2(step_folder)[1])
    # cloned out of the memory-mapped file, which may be pruned while they are in use
    tensors = TensorFiles([step_folder / OPTIMIZER])
    optimizer = {name: tensor.clone() for name, tensor in tensors.items()}
    return Checkpoint(state.step, model, optimizer, state)
