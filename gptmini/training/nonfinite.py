"""Stop training at the first number that is not finite, before it reaches the weights or a file."""

import torch
from torch import Tensor, nn

from gptmini.checkpoint.store import CheckpointStore
from gptmini.config import TrainConfig
from gptmini.data.batching import WindowSampler
from gptmini.distributed.context import to_local
from gptmini.errors import DivergedError
from gptmini.training.runtime import Runtime


class NonFiniteLatch:
    """Remembers on the device the first step whose loss or gradient norm was NaN or infinite.

    Asking after every step would make the CPU wait for the GPU; skipping that host sync keeps the GPU queue
    full. So the latch is read only where the loop waits anyway, and until then it turns every later update
    into a no-op: the weights stay those before the failed step.
    """

    def __init__(
        self, config: TrainConfig, runtime: Runtime, windows: WindowSampler, store: CheckpointStore
    ) -> None:
        self.config, self.runtime, self.windows, self.store = config, runtime, windows, store
        self.first = torch.zeros(3, device=runtime.device)  # step, loss, norm of the failure; step 0: none

    def check_step(self, step: int, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Whether this step's update must be skipped: a bool () on the device.

        Raises DivergedError in the steps in which the device is waited for; on a CPU, in every step.
        """
        # A float16 gradient may overflow: the scaler then skips the update and lowers its scale.
        overflow_is_normal = self.runtime.precision == "fp16"
        finite = loss.isfinite() & (grad_norm.isfinite() | overflow_is_normal)
        # Keep the first failure, all on the device.
        now = torch.stack((torch.full_like(loss, step), loss, grad_norm))
        self.first = torch.where(finite | (self.first[0] > 0), self.first, now)
        if self.should_sync(step):
            self.raise_if_set()
        return self.first[0] > 0

    def should_sync(self, step: int) -> bool:
        """Whether the loop waits for the device after this step anyway: to log, evaluate, sample or save."""
        c = self.config
        intervals = (c.log_interval, c.eval_interval, c.sample_interval, c.checkpoint_interval, c.max_steps)
        return self.runtime.device.type == "cpu" or any(i is not None and step % i == 0 for i in intervals)

    def raise_if_set(self) -> None:
        """Raise DivergedError, naming the windows of the batch, if a step so far was not finite."""
        step, loss, grad_norm = self.first.tolist()  # the only host sync
        if step == 0:
            return
        starts = self.windows.starts(int(step) - 1, self.config.batch_size)
        windows = ", ".join(str(start) for start in starts[:8]) + (", ..." if len(starts) > 8 else "")
        raise self.error(
            int(step),
            f"loss {loss}, gradient norm {grad_norm}; the batch was the windows at training tokens "
            f"{windows}. The update was not made",
        )

    def check_before_save(self, step: int, model: nn.Module) -> None:
        """Raise DivergedError if a step failed, or if an update left weights that are not finite."""
        self.raise_if_set()
        finite = all(bool(to_local(parameter).isfinite().all()) for parameter in model.parameters())
        if self.runtime.distributed.all_reduce_max(int(not finite)):  # a rank may hold only its shard
            raise self.error(step, "weights that are not finite after the update")

    def error(self, step: int, what: str) -> DivergedError:
        """The error to raise: what is not finite, which checkpoint is left, what to try."""
        saved = self.store.steps()
        left = f"the checkpoint of step {saved[-1]} is untouched" if saved else "nothing had been saved yet"
        return DivergedError(
            f"training diverged at step {step}: {what} and {left}: "
            "try a lower learning rate, more optim.warmup_steps or fp32"
        )
