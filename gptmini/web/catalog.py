"""Which models are served, by name, and the few of them that are loaded."""

import re
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from gptmini.checkpoint.folders import find_runs, is_begun_run, no_such_folder
from gptmini.checkpoint.store import CheckpointStore
from gptmini.config import load_config
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import DamagedError, UserError
from gptmini.generation.load import load
from gptmini.generation.precision import Precision
from gptmini.model import GPT
from gptmini.web.describe import describe

RUNS = Path("runs")
MAX_LOADED = 4  # models kept in memory; the one that was not asked for the longest goes first


class NotServedError(UserError):
    """A request names a model or run that this server does not have."""


class Loaded(NamedTuple):
    """A model that is ready to generate, and its tokenizer."""

    model: GPT
    tokenizer: Tokenizer


class Catalog:
    """The checkpoints and runs that are served. Requests only name them: no path comes from a request."""

    def __init__(
        self, paths: Sequence[str] = (), device: str = "auto", precision: Precision = "fp32"
    ) -> None:
        """With no paths, every run under runs/ is served, those that begin later too.

        Raises UserError or DamagedError for a path that holds no model, and where there is nothing to serve.
        """
        self._given = _name_folders([Path(path) for path in paths])
        self._device, self._precision = device, precision
        self._loaded: OrderedDict[object, Loaded] = OrderedDict()
        self._one_at_a_time: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._reorder = threading.Lock()
        for name, folder in self._given.items():
            _describe(name, folder, _state_of(folder))
        if not self.folders():
            raise UserError(
                "runs/: no run there to serve: train one (gptmini train), or name a checkpoint or a run"
            )

    def folders(self) -> dict[str, Path]:
        """Name and folder of each run and checkpoint that is served."""
        return self._given or {folder.name: folder for folder in find_runs(RUNS)}

    def run(self, name: str) -> Path:
        """The folder of a run; NotServedError where this server has none of that name."""
        folder = self.folders().get(name)
        if folder is None or not is_begun_run(folder):
            raise NotServedError(f"no run is called {name!r:.100} here")
        return folder

    def infos(self) -> list[dict[str, Any]]:
        """What a page says of each model; of one that cannot be read, why."""
        found = []
        for name, folder in self.folders().items():
            about = _describe_or_say_why(name, folder, _state_of(folder))
            is_run = is_begun_run(folder)
            steps = CheckpointStore(folder, keep=1).steps() if is_run else []
            found.append({**about, "id": name, "run": name if is_run else None, "checkpoints": steps})
        return found

    def find(self, model_id: str) -> tuple[str, Path]:
        """The name that is served, and the folder to load, of NAME or NAME@STEP."""
        folders = self.folders()
        if model_id in folders:
            return model_id, folders[model_id]
        name, _, step = model_id.rpartition("@")
        if name in folders and is_begun_run(folders[name]) and re.fullmatch("[0-9]{1,18}", step):
            store = CheckpointStore(folders[name], keep=1)
            if int(step) in store.steps():
                return name, store.path(int(step))
            raise NotServedError(f"{name} has no checkpoint of step {int(step)} any more")
        raise NotServedError(f"no model is called {model_id!r:.100} here; GET /v1/models lists them")

    def load(self, model_id: str) -> Loaded:
        """The model, from memory where it is there; of a run the best checkpoint, as it is now."""
        name, folder = self.find(model_id)
        key = (folder, _state_of(folder))
        with self._one_at_a_time[name]:
            if (found := self._loaded.get(key)) is None:
                model, tokenizer = load(folder.absolute(), self._device, self._precision)
                if tokenizer is None:
                    raise UserError(f"{folder}: holds no tokenizer, so there are no texts to read or write")
                found = Loaded(model, tokenizer)
        with self._reorder:
            self._loaded[key] = found
            self._loaded.move_to_end(key)
            while len(self._loaded) > MAX_LOADED:
                self._loaded.popitem(last=False)
        return found


def _name_folders(paths: Sequence[Path]) -> dict[str, Path]:
    """A name for each folder: its last part, or the whole path where two share that."""
    for path in paths:
        if not path.is_dir():
            raise no_such_folder(path)
    names = [path.resolve().name for path in paths]
    return {
        str(path) if names.count(name) > 1 else name: path for path, name in zip(paths, names, strict=True)
    }


def _state_of(folder: Path) -> int | None:
    """What changes when a run saves or removes a checkpoint; None for a folder that is no run."""
    checkpoints = folder / "checkpoints"
    return checkpoints.stat().st_mtime_ns if checkpoints.is_dir() else None


@lru_cache(maxsize=256)  # GPT-2's tokenizer alone takes a third of a second to read
def _describe(name: str, folder: Path, state: int | None) -> dict[str, Any]:
    """What a page says of the model in a folder, again after each save of its run."""
    if is_begun_run(folder) and not CheckpointStore(folder, keep=1).steps():
        shape = load_config(folder / "config.yaml").model
        unknown = dict.fromkeys(("tokenizer", "vocab_size", "parameters", "dtype"))
        sizes = shape.model_dump(include={"n_layer", "n_head", "n_embd", "context_length"})
        sentence = "has saved no checkpoint yet: its curves are under Watch"
        return {"name": name, "sentence": sentence, "first_line": "", "lines": {}, **sizes, **unknown}
    return describe(folder, name)


def _describe_or_say_why(name: str, folder: Path, state: int | None) -> dict[str, Any]:
    try:
        return _describe(name, folder, state)
    except (UserError, DamagedError) as error:
        return {"name": name, "sentence": f"cannot be read: {error}", "first_line": "", "lines": {}}
