"""The training loop: batches in, weights out."""

import math
import signal
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gptmini.atomic_io import write_file
from gptmini.checkpoint.store import Checkpoint, CheckpointStore, TrainingState
from gptmini.config import Config, dump_config
from gptmini.data.batching import WindowSampler, validation_batches
from gptmini.data.token_files import TokenData
from gptmini.distributed.context import full_tensor, join_process_group, to_local
from gptmini.distributed.fsdp import checkpoint_activations
from gptmini.errors import DivergedError, Stopped, UserError
from gptmini.generation.generate import generate_text
from gptmini.model import GPT
from gptmini.training.estimate import micro_batch_size_per_rank, plan
from gptmini.training.loss import bits_per_byte, evaluate, next_token_loss
from gptmini.training.metrics import Metrics, NoMetrics
from gptmini.training.optim import (
    build_optimizers,
    learning_rate_factor,
    optimizer_tensors,
    set_learning_rate,
)
from gptmini.training.resume import (
    build_model_and_data,
    check_resumable,
    claim_run_dir,
    latest_checkpoint,
    refuse_used_folder,
    resolve_tokenizer,
    restore,
)
from gptmini.training.runtime import Runtime, StopSignal, seed_everything, start_runtime, stop_signal
from gptmini.training.trackers import check_trackers


def train(config: Config, *, resume: bool = False, quiet: bool = False) -> None:
    """Train by `config` into the run folder `config.train.out_dir`; with `resume`, go on where it stands.

    Started by torchrun, the processes train one model together. Raises UserError for what cannot be trained
    (before anything is written to the run folder), DivergedError, DamagedError, InUseError, LostRankError,
    and Stopped when a signal came and everything was saved.
    """
    check_trackers(config.train.trackers)
    with join_process_group(config.runtime) as distributed:
        micro_batch_size_per_rank(config.train, distributed.world_size)  # refuses before anything is prepared
        runtime = start_runtime(config.runtime, distributed)
        store = CheckpointStore(Path(config.train.out_dir), keep=config.train.keep_checkpoints)
        if distributed.is_main:
            refuse_used_folder(store, resume)
        model, data = build_model_and_data(config, runtime, quiet or not distributed.is_main)
        config = resolve_tokenizer(config, data.tokenizer)
        with claim_run_dir(store, resume, distributed), stop_signal() as stop:
            trainer = Trainer(config, runtime, model, data, store)
            notes = trainer.restore() if resume else []
            if distributed.is_main:
                write_file(store.run_folder / "config.yaml", dump_config(config).encode())
            path, max_steps = store.run_folder / "metrics.jsonl", config.train.max_steps
            open_metrics = Metrics if distributed.is_main else NoMetrics
            with open_metrics(path, trainer.step, max_steps, trainer.tokens_per_step, quiet) as metrics:
                planned = plan(
                    config, model.config, len(data.train), runtime.precision, distributed.world_size
                )
                for line in (runtime, planned, *notes):
                    metrics.print(str(line))
                metrics.track(config, store.run_folder, trainer.step)
                trainer.run(metrics, stop)
                metrics.print(trainer.summary())


class StepResult(NamedTuple):
    """What an optimizer step tells. Loss and norm are on the device; to read them is to wait for it."""

    loss: Tensor
    """Mean over the global batch, in nats per token."""
    grad_norm: Tensor
    text_bytes: float
    """Of text that the batch's targets stand for."""
    seconds: float


class Trainer:
    """A model, its optimizers, and how far they have come."""

    def __init__(
        self, config: Config, runtime: Runtime, model: GPT, data: TokenData, store: CheckpointStore
    ) -> None:
        self.config, self.runtime, self.data, self.store = config, runtime, data, store
        self.distributed = runtime.distributed
        self.model = model.to(runtime.device).train()
        self.optimizers = build_optimizers(self.model, config.optim, runtime.matmul_dtype)
        self.scaler = runtime.grad_scaler()
        self.windows = WindowSampler(data.train, config.model.context_length, config.train.seed)
        self.micro_batch_size = micro_batch_size_per_rank(config.train, self.distributed.world_size)
        self.tokens_per_step = config.train.batch_size * config.model.context_length
        self.step = 0  # optimizer steps taken
        self.val_loss: float | None = None  # of the weights as they stand
        self.best_val_loss: float | None = None
        self.best_step: int | None = None
        self.evaluations_since_best = 0
        self.failure = torch.zeros(3, device=runtime.device)  # the first step that failed, its loss and norm
        if config.runtime.activation_checkpointing:
            checkpoint_activations(self.model)
        if runtime.compile:
            self.model.compile()
        self.ddp_model = self.distributed.wrap(
            self.model
        )  # computes as the model does, and averages gradients

    def run(self, metrics: Metrics, stop: StopSignal) -> None:
        """Train to the last step: set the rate, take the step, log, evaluate, sample, save."""
        train = self.config.train
        while not self.finished():
            self.step += 1
            self.val_loss = None  # the step changes the weights
            factor = learning_rate_factor(self.config.optim, self.step, train.max_steps)
            set_learning_rate(self.optimizers, factor)
            result = self.train_step()
            metrics.count_step(result.seconds)
            if self.is_due(train.log_interval):
                loss, lr = float(result.loss), factor * self.config.optim.lr
                bits = bits_per_byte(loss * self.tokens_per_step, result.text_bytes)
                metrics.log(self.step, "train", loss, bits, lr, float(result.grad_norm))
            is_best = self.is_due(train.eval_interval, or_last=True) and self.evaluate(metrics)
            if self.is_due(train.sample_interval):
                self.sample(metrics)
            stopping = self.distributed.all_reduce_max(
                int(stop)
            )  # asked once: one that comes later is for the next step
            if is_best or stopping or self.finished() or self.is_due(train.checkpoint_interval):
                self.save(metrics)
            if stopping and not self.finished():
                by = signal.Signals(stopping).name
                raise Stopped(f"stopped by {by} after step {self.step}; go on with --resume")

    def train_step(self) -> StepResult:
        """Accumulate the gradient of one global batch and update the weights.

        Where the loss or the gradient norm is not finite, neither this update nor a later one is made, and
        DivergedError comes when the device is next looked at: on a CPU at once.
        """
        started = time.perf_counter()
        starts = self.windows.starts(self.step - 1, self.config.train.batch_size)  # (batch_size,)
        micro_batches = self.distributed.shard_batch(starts).reshape(-1, self.micro_batch_size)
        first = self.distributed.rank * len(micro_batches)  # of the micro batches of all ranks, in order
        loss, text_bytes = torch.zeros((), device=self.runtime.device), 0.0
        for i, micro_starts in enumerate(micro_batches):
            inputs, targets = self.windows.batch(micro_starts)  # (micro_batch_size, T)
            seed_everything(self.config.train.seed, self.step, first + i)  # dropout is a function of the step
            with self.distributed.accumulate(self.ddp_model, last=i + 1 == len(micro_batches)):
                with self.runtime.autocast():
                    logits = self.ddp_model(self.runtime.to_device(inputs))  # (micro_batch_size, T, V)
                micro_loss = next_token_loss(logits, self.runtime.to_device(targets)) / len(micro_batches)
                torch.autograd.backward(self.scaler.scale(micro_loss))
            loss += micro_loss.detach()
            text_bytes += self.data.count_bytes(targets)
        loss, (text_bytes,) = (
            self.distributed.all_reduce_mean(loss),
            self.distributed.all_reduce_sum(text_bytes),
        )
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)  # type: ignore[arg-type]  # it reads param_groups only
        limit = self.config.optim.grad_clip or math.inf
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        failed = self.record_nonfinite(loss, norm)
        if self.should_sync():
            self.stop_if_diverged()
        for optimizer in self.optimizers:
            self.scaler.step(optimizer, failed)  # type: ignore[arg-type]  # it calls step only
        self.scaler.update()
        self.model.zero_grad()
        return StepResult(loss, norm, text_bytes, time.perf_counter() - started)

    def record_nonfinite(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Whether a number of this step, or of one before, was not finite; on the device, with no waiting.

        A float16 gradient may overflow: the scaler then skips the update and scales less.
        """
        finite = loss.isfinite() & (norm.isfinite() | self.scaler.is_enabled())
        now = torch.stack((torch.full_like(loss, self.step), loss, norm))
        self.failure = torch.where(finite | (self.failure[0] > 0), self.failure, now)
        return self.failure[0] > 0

    def should_sync(self) -> bool:
        """Whether to wait for the device in this step: a GPU works faster where nobody asks how it goes."""
        train = self.config.train
        intervals = (
            train.log_interval,
            train.eval_interval,
            train.sample_interval,
            train.checkpoint_interval,
        )
        return self.runtime.device.type == "cpu" or any(self.is_due(i, or_last=True) for i in intervals)

    def stop_if_diverged(self) -> None:
        """Raise DivergedError where a step has failed; the weights are then those before it."""
        step, loss, norm = self.failure.tolist()  # the only wait for the device
        if step == 0:
            return
        starts = self.windows.starts(int(step) - 1, self.config.train.batch_size)
        windows = ", ".join(str(start) for start in starts[:8]) + (", ..." if len(starts) > 8 else "")
        raise self.divergence(
            int(step),
            f"loss {loss}, gradient norm {norm}; the batch was the windows at training tokens {windows}. "
            "The update was not made",
        )

    def stop_if_weights_diverged(self) -> None:
        """Raise DivergedError where an update has left weights that are not finite: no file gets them."""
        finite = all(bool(to_local(parameter).isfinite().all()) for parameter in self.model.parameters())
        if self.distributed.all_reduce_max(int(not finite)):
            raise self.divergence(self.step, "weights that are not finite after the update")

    def divergence(self, step: int, what: str) -> DivergedError:
        """The error that says what is not finite, what is left, and what to try."""
        saved = self.store.steps()
        left = f"the checkpoint of step {saved[-1]} is untouched" if saved else "nothing had been saved yet"
        return DivergedError(
            f"training diverged at step {step}: {what} and {left}: "
            "try a lower learning rate, more optim.warmup_steps or fp32"
        )

    def evaluate(self, metrics: Metrics) -> bool:
        """Measure the validation split; returns whether it is the best so far."""
        train = self.config.train
        length = self.config.model.context_length
        batches = validation_batches(self.data.val, length, self.micro_batch_size, train.eval_tokens)
        result = evaluate(self.model, batches, self.data.count_bytes, self.runtime)
        if not math.isfinite(result.loss):
            raise self.divergence(self.step, f"validation loss {result.loss} after the update")
        metrics.log(self.step, "val", result.loss, result.bits_per_byte)
        self.val_loss = result.loss
        is_best = self.best_val_loss is None or result.loss < self.best_val_loss
        self.evaluations_since_best = 0 if is_best else self.evaluations_since_best + 1
        if is_best:
            self.best_val_loss, self.best_step = result.loss, self.step
        return is_best

    def sample(self, metrics: Metrics) -> None:
        """Show what the model writes now; the same seed each time, so that only the weights differ."""
        seed = self.config.train.seed
        with self.distributed.unsharded(self.model):
            try:
                (text,) = generate_text(self.model, self.data.tokenizer, "", max_new_tokens=200, seed=seed)
            except UserError:  # all that it may complain of here
                raise self.divergence(self.step, "logits that are not finite after the update") from None
        metrics.sample(self.step, text)

    def save(self, metrics: Metrics) -> None:
        """Commit a checkpoint of the weights, the optimizers and the step."""
        self.stop_if_diverged()
        self.stop_if_weights_diverged()
        metrics.sync()
        state = TrainingState(
            step=self.step,
            tokens=self.step * self.tokens_per_step,
            val_loss=self.val_loss,
            best_val_loss=self.best_val_loss,
            best_step=self.best_step,
            evaluations_since_best=self.evaluations_since_best,
            grad_scaler=self.scaler.state_dict() or None,
            config=self.config.model_dump(mode="json"),
            data_digest=self.data.digest,
            tokenizer_digest=self.data.tokenizer.digest,
            environment=self.runtime.environment(),
        )
        weights = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        optimizer = optimizer_tensors(self.model, self.optimizers)
        checkpoint = Checkpoint(
            self.step,
            self.distributed.gather_full_state_dict(weights),
            self.distributed.gather_full_state_dict(optimizer),
            state,
        )
        if self.distributed.is_main:
            self.store.save(checkpoint, self.model.config, self.data.tokenizer)

    def restore(self) -> list[str]:
        """Go to where the newest good checkpoint stands, if any; returns what the user should know."""
        checkpoint, notes = latest_checkpoint(self.store, self.distributed)
        if checkpoint is None:
            return [f"no checkpoint to resume in {self.store.run_folder}: starting from step 0"]
        state = checkpoint.state
        difference = check_resumable(state, self.config, self.data, self.runtime.environment())
        restore(checkpoint, self.model, self.optimizers)
        if state.grad_scaler:
            self.scaler.load_state_dict(state.grad_scaler)
        self.step = state.step
        self.best_val_loss, self.best_step = state.best_val_loss, state.best_step
        self.evaluations_since_best = state.evaluations_since_best
        return [*(f"passed over {note}" for note in notes), difference or f"resumed at step {self.step}"]

    def summary(self) -> str:
        """How the run ended."""
        best = f"{self.best_val_loss:.4f} at step {self.best_step}"
        return (
            f"finished after step {self.step}; best validation loss {best}; saved in {self.store.run_folder}"
        )

    def is_due(self, interval: int | None, *, or_last: bool = False) -> bool:
        """Whether something done every `interval` steps is to be done after this one."""
        at_last = or_last and self.step == self.config.train.max_steps
        return at_last or (interval is not None and self.step % interval == 0)

    def finished(self) -> bool:
        """Whether the run is over: all steps taken, or too long without a new best."""
        patience = self.config.train.early_stop_patience
        out_of_patience = patience is not None and self.evaluations_since_best >= patience
        return out_of_patience or self.step >= self.config.train.max_steps
