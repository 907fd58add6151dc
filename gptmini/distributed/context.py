"""Rank, world size and collectives: training on several processes, launched by torchrun.

With `ddp` every rank has a full replica of the model, and gradients are averaged. With `fsdp` (Zhao et al.,
2023; torch's FSDP2) it holds a shard of each parameter, gradient and optimizer state, as a DTensor.
"""

import json
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store
from torch.nn.parallel import DistributedDataParallel

from gptmini.config import RuntimeConfig
from gptmini.distributed.failure import find_missing_ranks, is_lost_connection, lost_ranks, shared_store
from gptmini.distributed.parent import end_with_torchrun, torchrun_world_size
from gptmini.model import GPT


@dataclass(frozen=True)
class DistributedContext:
    """The processes that train one model, as one rank sees them.

    The default is a single process, which never initialises torch.distributed.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among the processes of this machine
    local_world_size: int = 1
    sharded: bool = False  # whether each rank holds only a shard of the model (FSDP)
    store: Store | None = None  # torchrun's, which works without a process group; None in a single process

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def __str__(self) -> str:
        """The world size and, because it changes the bits of a result, whether the model is sharded."""
        return f"{self.world_size} with fsdp" if self.sharded else str(self.world_size)

    def shard_batch(self, starts: np.ndarray) -> np.ndarray:
        """This rank's contiguous slice (B / world_size,) of a step's window starts (B,).

        >>> DistributedContext(rank=1, world_size=2).shard_batch(np.array([30, 10, 40, 20]))
        array([40, 20])
        """
        shard: np.ndarray = starts.reshape(self.world_size, -1)[self.rank]
        return shard

    def shard_batches(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Every world_size-th (inputs, targets), so that each batch is on exactly one rank.

        A forward pass of a sharded model is a collective, so all ranks must run equally many: a rank with no
        batch in the last round gets inputs with empty targets.

        >>> batches = [(torch.tensor([[i]]), torch.tensor([[i]])) for i in range(3)]
        >>> context = DistributedContext(rank=1, world_size=2)
        >>> [inputs.item() for inputs, targets in context.shard_batches(batches)]
        [1]
        """
        number = 0
        for number, (inputs, targets) in enumerate(batches, start=1):
            if (number - 1) % self.world_size == self.rank:
                yield inputs, targets
        idle = self.rank >= number % self.world_size > 0  # an incomplete last round, without this rank
        if self.sharded and idle:
            yield inputs, targets[:0]

    def all_reduce_sum(self, *values: float) -> list[float]:
        """Each of the values, summed over all ranks."""
        return self._all_reduce(torch.tensor(values, dtype=torch.float64)).tolist()

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """The mean over all ranks, a tensor of the same shape."""
        return self._all_reduce(tensor.clone()) / self.world_size

    def all_reduce_max(self, value: int) -> int:
        """The maximum over all ranks."""
        return int(self._all_reduce(torch.tensor(value), dist.ReduceOp.MAX))

    def _all_reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """The tensor, reduced in place; one on the CPU goes through gloo, whatever the device."""
        if self.world_size > 1:
            _in_flight.append(tensor)
            dist.all_reduce(tensor, op)
        return tensor

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.all_reduce_sum(0.0)

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """Run the block on local rank 0 of each machine first; the others then find its files."""
        if self.local_rank > 0:
            self.barrier()
        yield
        if self.local_rank == 0:
            self.barrier()

    def broadcast_text(self, text: str) -> str:
        """The main rank's text, on every rank."""
        if self.store is None:
            return text
        # Through the store, as torch's broadcast_object_list would unpickle what it receives.
        key = f"broadcast {next(_broadcasts)}"
        if self.is_main:
            self.store.set(key, text)
        return self.store.get(key).decode()

    def wrap(self, model: GPT) -> nn.Module:
        """The module to call in training: with `ddp` on several ranks its backward averages gradients."""
        if self.world_size == 1 or self.sharded:  # FSDP reduces gradients by itself
            return model
        with warnings.catch_warnings():  # torch 2.13 renames the first option, and 2.9 lacks the new name
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def accumulate(self, model: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Around one micro batch: DDP all-reduces gradients only in the `last` one of a step."""
        if last or not isinstance(model, DistributedDataParallel):
            return nullcontext()  # FSDP always syncs: unreduced gradients would be as large as the model
        return model.no_sync()

    @contextmanager
    def unsharded(self, model: Any) -> Iterator[None]:
        """Inside, `hidden_states` and `lm_head` can be called directly; all ranks must enter."""
        if self.sharded:
            model.unshard()
        yield
        if self.sharded:
            model.reshard()

    def gather_full_state_dict(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Full tensors on the main rank, in CPU memory, and an empty dict elsewhere."""
        if not self.sharded:
            return dict(tensors) if self.is_main else {}
        gathered = {}
        for name, tensor in tensors.items():  # one at a time: the others hold at most one full tensor
            full = full_tensor(tensor)
            if self.is_main:
                gathered[name] = full.cpu()
        self.barrier()  # see _wait_for_gloo
        return gathered

    def broadcast_state_dict(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The main rank's tensors on every rank, each sent on access; all ranks access in one order."""
        return tensors if self.world_size == 1 else _BroadcastTensors(tensors, self)


_broadcasts = count()
_in_flight: deque[Tensor] = deque(maxlen=4)  # the tensors of the last collectives, for _wait_for_gloo


class _BroadcastTensors(Mapping[str, Tensor]):
    """Tensors of the main rank, broadcast one by one as they are accessed."""

    def __init__(self, tensors: Mapping[str, Tensor], distributed: DistributedContext) -> None:
        self._tensors, self._context = tensors, distributed
        # Names, dtypes and shapes go first, so that the others can allocate what they will receive.
        specs = {name: (str(t.dtype), list(t.shape)) for name, t in tensors.items()}
        self._specs = json.loads(distributed.broadcast_text(json.dumps(specs)))

    def __getitem__(self, name: str) -> Tensor:
        dtype, shape = self._specs[name]
        if self._context.is_main:
            tensor = self._tensors[name].cpu().contiguous()
        else:
            tensor = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
        _in_flight.append(tensor)
        dist.broadcast(tensor, src=0)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of a DTensor, and any other tensor as it is. A collective: all ranks must call."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def to_local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor, sharing its memory, and any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def shard_like(full: Tensor, like: Any) -> Tensor:
    """This rank's shard of a full tensor, cut as `like` is; without communication."""
    if not hasattr(like, "to_local"):
        return full
    from torch.distributed.tensor import distribute_tensor

    return to_local(distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None))


def gather_like(shard: Tensor, like: Any) -> Tensor:
    """The full tensor of shards that are cut as `like` is. A collective: all ranks must call."""
    if not hasattr(like, "to_local"):
        return shard
    from torch.distributed.tensor import DTensor

    size = {"shape": like.shape, "stride": like.stride()}  # of the full tensor, which a shard cannot know
    return full_tensor(DTensor.from_local(shard, like.device_mesh, like.placements, **size))


def copy_full_(parameter: Tensor, value: Tensor) -> None:
    """Copy a full tensor into a parameter, or this rank's part of it into a sharded one."""
    to_local(parameter).copy_(shard_like(value.detach().to(parameter.device), parameter))


@contextmanager
def join_process_group(config: RuntimeConfig) -> Iterator[DistributedContext]:
    """Connect to the other ranks for as long as the block lasts; a single process without torchrun.

    Raises LostRankError, naming the rank, where another one exits or does not respond within
    `rank_timeout_seconds`.
    """
    world_size = torchrun_world_size()
    if world_size == 1:
        yield DistributedContext()
        return
    rank = int(os.environ["RANK"])
    end_with_torchrun()
    store = shared_store()
    timeout = timedelta(seconds=config.rank_timeout_seconds)
    try:
        store.set_timeout(timeout)
        # CUDA tensors go through nccl, and what is on the CPU, such as metrics, through gloo.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and config.device != "cpu" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        local_rank, local_world_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        sharded = config.parallel == "fsdp"
        distributed = DistributedContext(rank, world_size, local_rank, local_world_size, sharded, store)
        yield distributed
        # torchrun never times out, so a rank that hangs at the end is noticed here or not at all.
        distributed.barrier()
        _wait_for_gloo()
        dist.destroy_process_group()
    except BaseException as error:
        # Report this rank's own failure to the store; after a lost connection find out who caused it.
        lost = is_lost_connection(error)
        missing = find_missing_ranks(store, rank, world_size, wait=lost)
        if not lost:
            _wait_for_gloo()
            raise
        if not missing:
            raise SystemExit(1) from None  # every rank is alive, and the one that failed says why
        raise lost_ranks(missing, world_size, config.rank_timeout_seconds) from None


def _wait_for_gloo() -> None:
    """Wait up to 5 seconds until gloo's threads have released the tensors of the last collectives.

    They need the GIL to do so, and destroying a process group joins them while it holds the GIL: too early,
    both would wait forever.
    """
    deadline = time.monotonic() + 5
    while _in_flight and time.monotonic() < deadline:
        if sys.getrefcount(_in_flight[0]) <= 2:  # the deque's reference and the call's argument
            _in_flight.popleft()
        else:
            time.sleep(0.001)
