"""The numbers of metrics.jsonl, sent to TensorBoard or Weights & Biases as well.

A tracker that fails, at its start or later, is reported once and dropped; training continues.
"""

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from gptmini.config import Config
from gptmini.errors import MissingPackageError

QUANTITIES = ("loss", "bits_per_byte", "lr", "grad_norm", "tokens_per_second")


class Tracker(NamedTuple):
    """What can be done with a tracker: record values named as in `loss/train`, and end."""

    log: Callable[[int, Mapping[str, float]], None]
    close: Callable[[], None]


def start_tensorboard(config: Config, run_dir: Path, first_step: int, quiet: bool) -> Tracker:
    """Event files in the run folder, which `tensorboard --logdir runs` shows."""
    from torch.utils.tensorboard import SummaryWriter

    # purge_step hides the events of steps that a resumed run takes again.
    writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1)

    def log(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return Tracker(log, writer.close)


def start_wandb(config: Config, run_dir: Path, first_step: int, quiet: bool) -> Tracker:
    """A run of Weights & Biases, in the project that WANDB_PROJECT names."""
    import wandb

    run = wandb.init(
        id=_latest_id(run_dir / "wandb") if first_step else None,  # a resumed run keeps its id
        name=run_dir.name,
        dir=str(run_dir),
        config=config.model_dump(mode="json"),
        resume="allow",
        settings={"silent": quiet},
    )
    return Tracker(lambda step, values: run.log(dict(values), step=step), run.finish)


def _latest_id(folder: Path) -> str | None:
    """The id of the newest run in wandb's own folder, whose names end with it: run-20261126_210000-ID."""
    names = [path.name.removeprefix("offline-") for path in folder.glob("*run-*-*")]
    return max(names).split("-", 2)[2] if names else None


KINDS = {"tensorboard": start_tensorboard, "wandb": start_wandb}


def check_trackers(names: Iterable[str]) -> None:
    """UserError if a tracker's package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingPackageError(f"train.trackers = {name}", name)


class Trackers:
    """All trackers of a run, none of which can stop it."""

    def __init__(
        self, config: Config, run_dir: Path, first_step: int, quiet: bool, print: Callable[[str], None]
    ) -> None:
        self._print = print
        self._running: dict[str, Tracker] = {}
        for name in config.train.trackers:
            with self._guard(name):
                self._running[name] = KINDS[name](config, run_dir, first_step, quiet)

    def log(self, step: int, split: str, line: Mapping[str, object]) -> None:
        """Send the numbers of a line of metrics.jsonl, named as in `loss/train`."""
        values = {f"{name}/{split}": v for name in QUANTITIES if isinstance(v := line[name], int | float)}
        for name, tracker in list(self._running.items()):
            with self._guard(name):
                tracker.log(step, values)

    def close(self) -> None:
        """Close them all."""
        for name, tracker in list(self._running.items()):
            with self._guard(name):
                tracker.close()

    @contextmanager
    def _guard(self, name: str) -> Iterator[None]:
        # Any exception: this is other people's code, their network and their server.
        try:
            yield
        except Exception as error:
            self._running.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self._print(f"{name} failed and is left out from now on; the run continues ({reason})")
