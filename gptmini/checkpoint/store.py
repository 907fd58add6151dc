"""Which checkpoints a run has: save, verify, latest, best, prune, lock; and `load` for everything that reads.

A checkpoint is the folder of one step, `checkpoints/step-00001000/`: a Hugging Face GPT-2 directory, plus
`training/` for going on, plus `manifest.json` with size and sha256 of every file. It is written beside its
place, the manifest last, verified by reading it back, and renamed into place whole; only then do older ones
go. So at every instant, and after a crash at any instant, what stands under a step's name is complete.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gptmini import atomic_io
from gptmini.checkpoint.hf_gpt2 import (
    FORMAT_VERSION,
    config_from_gpt2,
    generation_config,
    gpt2_config,
    parameters_from_gpt2,
    to_gpt2,
)
from gptmini.checkpoint.safetensors_io import TensorFiles, json_bytes, read_json, tensor_file_pieces
from gptmini.config import GPTConfig
from gptmini.data.tokenizers import Tokenizer, load_tokenizer
from gptmini.errors import DamagedError, UserError
from gptmini.model import GPT
from gptmini.schema import Section, explain

_MANIFEST = "manifest.json"
_STEP_FOLDER = re.compile(r"step-(\d{8,18})")


class TrainingState(Section):
    """What a resumed run needs besides weights and optimizer state; training/state.json."""

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


@dataclass(frozen=True)
class Checkpoint:
    """A training run between two steps."""

    step: int
    model: Mapping[str, Tensor]
    """GPT's state dict."""
    optimizer: Mapping[str, Tensor]
    """Optimizer state under flat names."""
    state: TrainingState


def load(path: str | Path, device: str = "cpu") -> tuple[GPT, Tokenizer | None]:
    """The model, in eval mode, and the tokenizer of a checkpoint.

    `path` is a run folder (its best checkpoint, else its latest), one step's folder, or any Hugging Face
    GPT-2 directory with safetensors weights, whole or sharded; the tokenizer is None where it holds none.
    Takes as much memory as the weights in float32, plus one tensor, plus the causal mask.

    Raises UserError if there is no checkpoint, or one that this version cannot read; DamagedError, naming
    the file, if it is not what was written.
    """
    config, parameters, tokenizer = open_weights(path)
    state = dict(parameters)  # before a model is built of a size that no file holds
    with _WithoutInit():
        model = GPT(config)
    state["lm_head.weight"] = state["token_embedding.weight"]
    model.load_state_dict(state, assign=True)  # the parameters drawn by no one take no memory, and go
    model.lm_head.weight = model.token_embedding.weight
    return model.to(device).eval(), tokenizer


def open_weights(path: str | Path) -> tuple[GPTConfig, Iterator[tuple[str, Tensor]], Tokenizer | None]:
    """What `load` makes a model of, with the parameters in float32 one by one, each read when it is due.

    So that a rank which keeps its share of each never holds all of them. Raises what `load` does, also while
    the parameters are read.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder: give a run folder, a step's folder or a GPT-2 directory")
    if (path / "checkpoints").is_dir():
        path = _best_or_latest(path)
    if (path / _MANIFEST).exists() or (path / "training").exists():
        verify(path)
    elif not (path / "config.json").exists():
        raise UserError(f"{path}: holds no checkpoint: there is neither checkpoints/ nor config.json in it")
    config, parameters = _read_model(path)
    return config, parameters, load_tokenizer(path)


def verify(step_folder: Path) -> None:
    """Hold a step's folder against its manifest.

    Raises DamagedError naming the first file that is missing, too many, a link, or not what was written;
    UserError if a later version of gptmini wrote the folder.
    """
    manifest = _read_manifest(step_folder / _MANIFEST)
    names = set(_files(step_folder)) - {_MANIFEST}
    if missing := sorted(manifest.files.keys() - names):
        raise DamagedError(f"{_shown(step_folder / missing[0])}: missing")
    if extra := sorted(names - manifest.files.keys()):
        raise DamagedError(f"{_shown(step_folder / extra[0])}: not part of the checkpoint: remove it")
    with ThreadPoolExecutor() as pool:  # reading and sha256 let go of Python's lock
        summaries = pool.map(lambda name: _summary_of(step_folder / name), manifest.files)
        for (name, written), found in zip(manifest.files.items(), summaries, strict=True):
            _check_same(step_folder / name, found, written)


class CheckpointStore:
    """The checkpoints of one run folder. Hold `lock()` while saving.

    `keep` is how many of the newest checkpoints stay, besides the one with the lowest validation loss.
    """

    def __init__(self, run_folder: Path, keep: int):
        self.run_folder = run_folder
        self.folder = run_folder / "checkpoints"
        self.keep = keep
        self._check_lock: Callable[[], None] | None = None  # while it is held

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from training in the run folder; raises InUseError if one does."""
        atomic_io.make_folder(self.run_folder)
        return self._lock()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with atomic_io.lock(self.run_folder / ".lock", f"run folder {self.run_folder}") as self._check_lock:
            yield
        self._check_lock = None

    def clean(self) -> None:
        """Remove what a killed run left half-written."""
        atomic_io.clean_leftovers(self.run_folder)
        atomic_io.clean_leftovers(self.folder)

    def save(self, checkpoint: Checkpoint, config: GPTConfig, tokenizer: Tokenizer) -> Path:
        """Write one step's folder, then remove checkpoints that are no longer kept; returns the folder.

        A step that is there already and verifies is left as it is. Raises OSError naming path and cause if
        the disk fails, or if the locked run folder is no longer there; every checkpoint saved before stays.
        """
        if self._check_lock is not None:
            self._check_lock()
        path = self.path(checkpoint.step)
        if os.path.lexists(path):
            try:
                verify(path)
                return path
            except DamagedError:
                atomic_io.remove_folder(path)
        atomic_io.make_folder(self.folder)
        with atomic_io.new_folder(path) as folder:
            _write_step(folder, checkpoint, config, tokenizer)
        self._prune(checkpoint.step)
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
        losses = [(loss, step) for step in self.steps() if (loss := self._val_loss(step)) is not None]
        return self.path(min(losses)[1]) if losses else None

    def _val_loss(self, step: int) -> float | None:
        try:
            return _read_state(self.path(step)).val_loss
        except DamagedError:
            return None

    def _prune(self, newest: int) -> None:
        """Remove all but the best and the `keep` newest checkpoints up to the one just saved.

        A later one is damaged, or `latest` would have gone on from it; it must not count as one that is kept.
        """
        best = self.best()
        for step in [step for step in self.steps() if step <= newest][: -self.keep]:
            if self.path(step) != best:
                atomic_io.remove_folder(self.path(step))


class _WithoutInit(TorchFunctionMode):
    """Skip torch.nn.init: drawing weights only to replace them takes longer than reading a checkpoint.

    (The meta device, made for this, imports torch.compile, which takes seconds.)
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


class _FileSummary(Section):
    """Size in bytes and sha256 of a file."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class _Manifest(Section):
    """What a step's folder holds, the manifest itself left out."""

    format_version: int
    files: Annotated[dict[str, _FileSummary], Field(min_length=1)]


def _write_step(folder: Path, checkpoint: Checkpoint, config: GPTConfig, tokenizer: Tokenizer) -> None:
    """Fill the folder of a step, and read back all that was written; DamagedError if the disk changed it.

    Takes as much memory as the matrices that GPT-2's files hold transposed; from a GPU, as all of the state.
    """
    contents: dict[str, Mapping[str, Tensor] | bytes] = {
        "training/optimizer.safetensors": checkpoint.optimizer,  # the longest first
        **model_files(checkpoint.model, config, tokenizer),
        "training/state.json": json_bytes(checkpoint.state.model_dump(mode="json")),
    }
    atomic_io.make_folder(folder / "training")
    with ThreadPoolExecutor(max_workers=2) as beside:  # transposing and sha256 take longer than a disk
        made = {name: beside.submit(list, _pieces(content)) for name, content in contents.items()}
        summaries = {name: beside.submit(_sum_up, pieces) for name, pieces in made.items()}
        read_back = []
        for name, pieces in made.items():
            atomic_io.create_file(folder / name, pieces.result())
            read_back.append(beside.submit(_read_back, folder / name, pieces.result()))
        for reading in read_back:
            reading.result()
        manifest = _manifest_bytes({name: summary.result() for name, summary in summaries.items()})
    atomic_io.create_file(folder / _MANIFEST, manifest)
    _read_back(folder / _MANIFEST, [manifest])


def model_files(
    weights: Mapping[str, Tensor], config: GPTConfig, tokenizer: Tokenizer | None
) -> dict[str, Mapping[str, Tensor] | bytes]:
    """The files of a Hugging Face GPT-2 directory by name: bytes, or the tensors of a safetensors file."""
    end_of_text = tokenizer.end_of_text if tokenizer else None
    return {
        "config.json": json_bytes(gpt2_config(config, end_of_text)),
        "generation_config.json": json_bytes(generation_config(end_of_text)),
        "model.safetensors": to_gpt2(weights, config),
        **(tokenizer.files() if tokenizer else {}),
    }


def _sum_up(pieces: Future[list[bytes | memoryview]]) -> _FileSummary:
    """Size and sha256 of what is meant to be written."""
    digest, size = sha256(), 0
    for piece in pieces.result():
        digest.update(piece)
        size += len(piece)
    return _FileSummary(size=size, sha256=digest.hexdigest())


def _read_back(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Raise DamagedError where the disk does not give back what was written to it."""
    found = bytearray(2**20)  # small enough for the processor's cache
    with open(path, "rb") as file:
        for piece in pieces:
            for start in range(0, len(piece), len(found)):
                part = memoryview(piece)[start : start + len(found)]
                if file.readinto(memoryview(found)[: len(part)]) != len(part) or found[: len(part)] != part:
                    raise DamagedError(f"{path}: the disk does not give back what was written to it")
        if file.read(1):
            raise DamagedError(f"{path}: the disk does not give back what was written to it")


def _pieces(content: Mapping[str, Tensor] | bytes) -> Iterable[bytes | memoryview]:
    return [content] if isinstance(content, bytes) else tensor_file_pieces(content)


def _manifest_bytes(files: dict[str, _FileSummary]) -> bytes:
    body = json_bytes(_Manifest(format_version=FORMAT_VERSION, files=files).model_dump())
    return append_checksum(body.removesuffix(b"\n}\n"))


def append_checksum(body: bytes) -> bytes:
    """The manifest, its own sha256 as the last key: no byte of it can change unnoticed either."""
    return body + b',\n  "sha256": "' + sha256(body).hexdigest().encode() + b'"\n}\n'


def _read_manifest(path: Path) -> _Manifest:
    values = read_json(path)
    text = path.read_bytes()
    if text != append_checksum(text[: -len(append_checksum(b""))]):
        raise DamagedError(f"{path}: damaged: its sha256 is not that of what was written")
    _check_version(values.get("format_version"), path)
    del values["sha256"]
    try:
        return _Manifest.model_validate(values)
    except ValidationError as error:
        raise DamagedError(explain(error, _Manifest, str(path))) from None


def _read_state(step_folder: Path) -> TrainingState:
    path = step_folder / "training" / "state.json"
    values = read_json(path)
    _check_version(values.get("format_version"), path)
    try:
        return TrainingState.model_validate(values)
    except ValidationError as error:
        raise DamagedError(explain(error, TrainingState, str(path))) from None


def _check_version(version: object, path: Path) -> None:
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise UserError(
            f"{path}: format version {version} is not known to this gptmini, which reads version "
            f"{FORMAT_VERSION}: use the gptmini that wrote it"
        )


def _read_model(folder: Path) -> tuple[GPTConfig, Iterator[tuple[str, Tensor]]]:
    """Config and parameters of a GPT-2 directory."""
    try:
        config = config_from_gpt2(read_json(folder / "config.json"))
        tensors = TensorFiles(_weight_files(folder))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None

    def read() -> Iterator[tuple[str, Tensor]]:
        try:
            yield from parameters_from_gpt2(tensors, config)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None

    return config, read()


def _weight_files(folder: Path) -> list[Path]:
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        raise UserError("no model.safetensors in it (weights in pickle files are never loaded)")
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise DamagedError(f"{index}: has no weight_map")
    for shard in shards.values():
        if not isinstance(shard, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", shard):
            raise DamagedError(f"{index}: {shard!r:.100} is not the name of a safetensors file beside it")
    return [folder / shard for shard in sorted(set(shards.values()))]


def _read_checkpoint(step_folder: Path) -> Checkpoint:
    state = _read_state(step_folder)
    model = dict(_read_model(step_folder)[1])
    optimizer = dict(TensorFiles([step_folder / "training" / "optimizer.safetensors"]))
    return Checkpoint(state.step, model, optimizer, state)


def _best_or_latest(run_folder: Path) -> Path:
    store = CheckpointStore(run_folder, keep=1)
    steps = store.steps()
    if not steps:
        raise UserError(f"{run_folder}: has no checkpoint yet")
    return store.best() or store.path(steps[-1])


def _files(folder: Path) -> Iterator[str]:
    """The files in a folder and below, as paths with `/`; links and devices are refused."""
    for parent, folders, names in os.walk(folder):
        for path in (Path(parent, name) for name in folders + names):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise DamagedError(f"{_shown(path)}: not a plain file, as every part of a checkpoint is")
            if path.is_file():
                yield path.relative_to(folder).as_posix()


def _shown(path: Path) -> str:
    """A path for a message, quoted where a stranger put line ends or the like into a name."""
    return str(path) if str(path).isprintable() else repr(str(path))


def _check_same(path: Path, found: _FileSummary, written: _FileSummary) -> None:
    if found.size != written.size:
        raise DamagedError(f"{path}: damaged: {found.size:,} bytes long, but {written.size:,} were written")
    if found.sha256 != written.sha256:
        raise DamagedError(f"{path}: damaged: its sha256 is not that of what was written")


def _summary_of(path: Path) -> _FileSummary:
    digest = sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(2**20):
                digest.update(piece)
        return _FileSummary(size=path.stat().st_size, sha256=digest.hexdigest())
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {error.strerror}") from None
