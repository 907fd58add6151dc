"""train(): the config read, the model built, the run folder claimed. The loop itself is in trainer.py."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptmini.atomic_io import write_file
from gptmini.checkpoint.store import CheckpointStore
from gptmini.config import Config, dump_config, load_config
from gptmini.distributed.context import join_process_group
from gptmini.errors import UserError
from gptmini.memory import explain_shortage
from gptmini.paths import path_argument
from gptmini.schema import validate
from gptmini.terminal import guard_streams
from gptmini.training.estimate import LOWER_STEP, estimate, micro_batch_size_per_rank
from gptmini.training.initialize import build_model_and_data, resolve_tokenizer
from gptmini.training.metrics import Metrics
from gptmini.training.micro_batch import fit_micro_batch_size
from gptmini.training.resume import claim_run_dir, refuse_used_folder, restore, saved_tokenizer
from gptmini.training.runtime import explain_compile_failure, start_runtime
from gptmini.training.signals import stop_signal
from gptmini.training.trackers import Trackers, check_trackers
from gptmini.training.trainer import Trainer


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. Losses are of the validation split, in nats per token; None if never evaluated."""

    run_dir: Path
    best_step: int | None
    best_val_loss: float | None
    val_loss: float | None  # of the last step
    step: int  # optimizer steps taken, those before a resume included

    def __str__(self) -> str:
        loss = "none yet"
        if self.best_val_loss is not None:
            loss = f"{self.best_val_loss:.4f} at step {self.best_step}"
        return f"finished after step {self.step}; best validation loss {loss}; saved in {self.run_dir}"


@guard_streams(may_fail=True)  # a run outlives its terminal
@explain_shortage(LOWER_STEP)
def train(
    config: Config | str | Path | Mapping[str, Any], *, resume: bool = False, quiet: bool = False
) -> TrainResult:
    """Train by a Config, the path of a YAML file, or a dict of sections, into `train.out_dir`.

    With `resume`, continue from the newest checkpoint in that folder. Started by torchrun, the processes
    train one model together. Raises UserError for what cannot be trained (before anything is written to the
    run folder), DivergedError, DamagedError, InUseError, LostRankError, OutOfMemoryError, and Stopped when a
    signal came and everything was saved.
    """
    if not isinstance(resume, bool):
        raise UserError(f"resume = {resume!r:.60}: must be True or False")
    if isinstance(config, Mapping):
        config = validate(Config, config, "config")
    elif not isinstance(config, Config):
        config = load_config(path_argument(config, "train takes a Config, the path of a YAML file or a dict"))
    check_trackers(config.train.trackers)
    with join_process_group(config.runtime) as distributed:
        runtime = start_runtime(config.runtime, distributed)
        store = CheckpointStore(Path(config.train.out_dir), keep=config.train.keep_checkpoints)

        # Refuse what cannot be trained before any text is tokenized.
        micro_batch_size_per_rank(config.train, distributed.world_size)
        if distributed.is_main:
            refuse_used_folder(store, resume)
        tokenizer = saved_tokenizer(store, config) if resume else None
        model, data = build_model_and_data(config, runtime, quiet or not distributed.is_main, tokenizer)
        config = resolve_tokenizer(config, data.tokenizer)

        # From here on the run folder is locked, and a signal waits for the end of the step.
        with claim_run_dir(store, resume, distributed), stop_signal() as stop:
            trainer = Trainer(config, runtime, model, data, store)
            config = fit_micro_batch_size(trainer, resume=resume)
            notes = restore(store, trainer.state, config, data, runtime) if resume else []
            if distributed.is_main and not trainer.progress.is_finished(config.train):
                write_file(store.run_folder / "config.yaml", dump_config(config).encode())
            first, last = trainer.progress.step, config.train.max_steps
            tokens_per_step, is_main = trainer.tokens_per_step, distributed.is_main
            with Metrics(store.run_folder, first, last, tokens_per_step, quiet, is_main) as metrics:
                sizes = len(data.train), runtime.precision, distributed.world_size
                planned = estimate(config, model.config, *sizes)
                tokens = trainer.progress.tokens + (last - first) * tokens_per_step
                for line in (runtime, replace(planned, tokens=tokens), *notes):
                    metrics.print(str(line))
                if is_main:
                    metrics.trackers = Trackers(config, store.run_folder, first, quiet, metrics.print)
                with explain_compile_failure():
                    trainer.run(metrics, stop)
                p = trainer.progress
                result = TrainResult(store.run_folder, p.best_step, p.best_val_loss, p.val_loss, p.step)
                metrics.print(str(result))
        return result
