"""The training loop: batches in, weights out. Read `Trainer.run`, then `Trainer.train_step`."""

import math
import signal
import time
from typing import NamedTuple

import torch
from torch import Tensor

from gptmini.checkpoint.store import CheckpointStore
from gptmini.config import Config
from gptmini.data.batching import WindowSampler, validation_batches
from gptmini.data.token_files import TokenData
from gptmini.distributed.context import full_tensor
from gptmini.distributed.fsdp import checkpoint_activations
from gptmini.errors import DivergedError, Stopped
from gptmini.generation.streaming import generate_text
from gptmini.model import GPT
from gptmini.training.estimate import micro_batch_size_per_rank
from gptmini.training.loss import bits_per_byte, evaluate_batches, next_token_loss
from gptmini.training.metrics import Metrics
from gptmini.training.nonfinite import NonFiniteLatch
from gptmini.training.optim import build_optimizers, learning_rate_factor, set_learning_rate
from gptmini.training.progress import Progress
from gptmini.training.resume import RunState, save_checkpoint
from gptmini.training.runtime import Runtime, seed_everything
from gptmini.training.signals import StopSignal


class StepResult(NamedTuple):
    """What an optimizer step returns. Loss and norm stay on the device: float() waits for a GPU to finish."""

    loss: Tensor  # mean over the global batch, in nats (natural logarithm) per token
    grad_norm: Tensor  # before clipping
    text_bytes: float  # bytes of text that the batch's targets stand for
    seconds: float


class Trainer:
    """A model, its optimizers, and the number of steps they have taken."""

    def __init__(
        self, config: Config, runtime: Runtime, model: GPT, data: TokenData, store: CheckpointStore
    ) -> None:
        self.config, self.runtime, self.data, self.store = config, runtime, data, store
        self.distributed = runtime.distributed
        self.model = model.to(runtime.device).train()
        # AdamW; with Muon, one for the matrices of the blocks and AdamW for everything else.
        self.optimizers = build_optimizers(self.model, config.optim, runtime.matmul_dtype)
        self.scaler = runtime.grad_scaler()  # fp16 only: scales the loss, so that no gradient becomes 0
        self.windows = WindowSampler(data.train, config.model.context_length, config.train.seed)
        self.micro_batch_size = micro_batch_size_per_rank(config.train, self.distributed.world_size)
        self.tokens_per_step = config.train.batch_size * config.model.context_length
        self.progress = Progress()
        self.latch = NonFiniteLatch(config.train, runtime, self.windows, store)  # set by a NaN, stays set
        self.state = RunState(self.model, self.optimizers, self.scaler, self.progress)
        # What saves memory, compiles or uses several processes (ranks) is added here, not in model.py.
        if config.runtime.activation_checkpointing:  # recompute activations in the backward pass
            checkpoint_activations(self.model)
        if runtime.compile:
            self.model.compile()
        # The same model, called through DistributedDataParallel: its backward averages gradients over ranks.
        self.ddp_model = self.distributed.wrap(self.model)

    def run(self, metrics: Metrics, stop: StopSignal) -> None:
        """Train to the last step, or until early stopping: step, log, evaluate, sample, save."""
        config, progress = self.config.train, self.progress
        while not progress.is_finished(config):
            # Update the weights. The learning rate, like the data, is a function of the step.
            progress.next_step(self.tokens_per_step)
            lr_factor = learning_rate_factor(self.config.optim, progress.step, config.max_steps)
            set_learning_rate(self.optimizers, lr_factor)
            result = self.train_step()
            metrics.count_step(result.seconds)

            # Log now and then only: float() waits until the GPU has finished the step.
            if self.is_due(config.log_interval):
                loss, lr = float(result.loss), lr_factor * self.config.optim.lr
                nats = loss * self.tokens_per_step  # of the whole batch; the loss is nats per token
                bits = bits_per_byte(nats, result.text_bytes)
                metrics.log(progress, "train", loss, bits, lr, float(result.grad_norm))

            # Evaluate on text that is not trained on, and show what the model writes.
            is_best = False
            if self.is_due(config.eval_interval) or progress.step == config.max_steps:
                is_best = self.evaluate(metrics)
            if self.is_due(config.sample_interval):
                self.sample(metrics)

            # Save the best, the last, and on Ctrl-C. A signal may reach one rank only, so all ranks take the
            # largest signal number; 0 is none.
            stopping = self.distributed.all_reduce_max(stop.received)
            finished = progress.is_finished(config)
            if is_best or stopping or finished or self.is_due(config.checkpoint_interval):
                self.save(metrics)
            if stopping and not finished:
                name = signal.Signals(stopping).name
                raise Stopped(f"stopped by {name} after step {progress.step}; continue with --resume")

    def train_step(self) -> StepResult:
        """Update the weights once, by the gradient of one global batch.

        If the loss or the gradient norm is not finite, neither this update nor a later one is made, and
        DivergedError is raised: on a CPU at once, on a GPU when it is next waited for.

        With one process, self.distributed and full_tensor change nothing. Outside fp16, self.scaler only
        passes calls on: scale(loss) is the loss, step(optimizer) is optimizer.step().
        """
        started, step, seed = time.perf_counter(), self.progress.step, self.config.train.seed
        # Data: where this step's windows start (steps count from 1, the sampler from 0), a shard for each
        # rank, in micro batches that fit in memory.
        starts = self.windows.starts(step - 1, self.config.train.batch_size)  # (batch_size,)
        shard = self.distributed.shard_batch(starts)  # (batch_size / world_size,)
        micro_batches = shard.reshape(-1, self.micro_batch_size)  # (micro batches, micro_batch_size)
        first = self.distributed.rank * len(micro_batches)  # this rank's first, counted over all ranks
        loss, text_bytes = torch.zeros((), device=self.runtime.device), 0.0
        for i, micro_starts in enumerate(micro_batches):
            inputs, targets = self.windows.batch(micro_starts)  # (micro_batch_size, T) each
            seed_everything(seed, step, first + i)  # so that a resumed run drops the same activations
            is_last = i == len(micro_batches) - 1  # ranks exchange gradients once, after the last one
            with self.distributed.accumulate(self.ddp_model, last=is_last):
                # Forward: logits in the run's precision, the loss in float32. Gradients of micro batches add
                # up, so each loss is divided by their number: the sum is then the mean over the batch.
                with self.runtime.autocast():
                    logits = self.ddp_model(self.runtime.to_device(inputs))  # (micro_batch_size, T, V)
                micro_loss = next_token_loss(logits, self.runtime.to_device(targets)) / len(micro_batches)
                # Backward: adds to each parameter's .grad.
                self.scaler.scale(micro_loss).backward()  # type: ignore[no-untyped-call]  # torch has no types here
            loss += micro_loss.detach()  # the number only, not the graph behind it
            text_bytes += self.data.tokenizer.count_bytes(targets)  # for bits per byte
        loss = self.distributed.all_reduce_mean(loss)
        (text_bytes,) = self.distributed.all_reduce_sum(text_bytes)

        # Clip: scale all gradients down if their common norm is above the limit, so that one unusual batch
        # does not move the weights far. In fp16, undo the scaling of the loss first.
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)  # type: ignore[arg-type]  # it reads param_groups only
        limit = self.config.optim.grad_clip or math.inf  # 0: measure the norm, but do not clip
        grad_norm = full_tensor(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        # A bool on the device: true from the first NaN or infinity on, and then the update changes nothing.
        skip = self.latch.check_step(step, loss, grad_norm)

        # Update the weights, then clear the gradients for the next step.
        for optimizer in self.optimizers:
            self.scaler.step(optimizer, skip)  # type: ignore[arg-type]  # it calls optimizer.step(skip)
        self.scaler.update()
        self.model.zero_grad()
        return StepResult(loss, grad_norm, text_bytes, time.perf_counter() - started)

    def evaluate(self, metrics: Metrics) -> bool:
        """Measure the loss on the validation split; returns whether it is the best so far."""
        length, eval_tokens = self.config.model.context_length, self.config.train.eval_tokens
        batches = validation_batches(self.data.val, length, self.micro_batch_size, eval_tokens)
        result = evaluate_batches(self.model, batches, self.data.tokenizer.count_bytes, self.runtime)
        if not math.isfinite(result.loss):
            raise self.latch.error(self.progress.step, f"validation loss {result.loss} after the update")
        metrics.log(self.progress, "val", result.loss, result.bits_per_byte)
        return self.progress.record_evaluation(result.loss)

    def sample(self, metrics: Metrics) -> None:
        """Generate a text, with the same seed each time, so that only the weights differ."""
        step, seed = self.progress.step, self.config.train.seed
        with self.distributed.unsharded(self.model):  # FSDP: each rank gets all weights for a moment
            try:
                (text,) = generate_text(self.model, self.data.tokenizer, "", max_new_tokens=200, seed=seed)
            except DivergedError:
                raise self.latch.error(step, "logits that are not finite after the update") from None
        metrics.log_sample(step, text)

    def save(self, metrics: Metrics) -> None:
        """Write a checkpoint, whole or not at all, and the metrics up to it."""
        self.latch.check_before_save(self.progress.step, self.model)
        metrics.sync()
        save_checkpoint(self.store, self.state, self.config, self.data, self.runtime)

    def is_due(self, interval: int | None) -> bool:
        """True every `interval` steps; never for None."""
        return interval is not None and self.progress.step % interval == 0
