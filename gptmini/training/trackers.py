"""metrics.jsonl's figures, sent to TensorBoard or Weights & Biases as well.

A tracker that fails, at its start or later, is told of once and left out from then on; the run goes on.
"""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from gptmini.config import Config
from gptmini.errors import UserError

_QUANTITIES = ("loss", "bits_per_byte", "lr", "grad_norm", "tokens_per_second")


class Tracker(Protocol):
    """What a tracker must be able to do."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take figures named as in `loss/train`."""

    def close(self) -> None:
        """The run is over, for now."""


class TensorBoard:
    """Event files in the run folder: `tensorboard --logdir runs` shows them."""

    def __init__(self, config: Config, run_folder: Path, first_step: int, quiet: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_folder / "tensorboard"), purge_step=first_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar for each figure."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is held back."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, in the project that WANDB_PROJECT names."""

    def __init__(self, config: Config, run_folder: Path, first_step: int, quiet: bool) -> None:
        import wandb

        self._run = wandb.init(
            id=_latest_id(run_folder / "wandb") if first_step else None,
            name=run_folder.name,
            dir=str(run_folder),
            config=config.model_dump(mode="json"),
            resume="allow",
            settings={"silent": quiet},
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """All figures at once."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


def _latest_id(folder: Path) -> str | None:
    """The id of the newest run in wandb's own folder, whose names end with it: run-20261126_210000-ID."""
    names = [path.name.removeprefix("offline-") for path in folder.glob("*run-*-*")]
    return max(names).split("-", 2)[2] if names else None


_KINDS: dict[str, Callable[[Config, Path, int, bool], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}


def check_trackers(names: Iterable[str]) -> None:
    """UserError where a tracker's package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.trackers = {name}: the package is not installed: pip install 'gptmini[{name}]'"
            )


class Trackers:
    """All trackers of a run, none of which can stop it."""

    def __init__(
        self, config: Config, run_folder: Path, first_step: int, quiet: bool, tell: Callable[[str], None]
    ) -> None:
        self._tell = tell
        self._running: dict[str, Tracker] = {}
        for name in config.train.trackers:
            self._guard(name, partial(self._start, name, config, run_folder, first_step, quiet))

    def log(self, step: int, split: str, line: Mapping[str, object]) -> None:
        """Send the figures of a line of metrics.jsonl, named as in `loss/train`."""
        values = {
            f"{name}/{split}": float(value)
            for name in _QUANTITIES
            if isinstance(value := line[name], int | float)
        }
        for name, tracker in list(self._running.items()):
            self._guard(name, partial(tracker.log, step, values))

    def close(self) -> None:
        """End them all."""
        for name, tracker in list(self._running.items()):
            self._guard(name, tracker.close)

    def _start(self, name: str, config: Config, run_folder: Path, first_step: int, quiet: bool) -> None:
        self._running[name] = _KINDS[name](config, run_folder, first_step, quiet)

    def _guard(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever it is: other people's code, their network, their server
            self._running.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self._tell(f"{name} failed and is left out from now on; the run goes on ({reason})")
