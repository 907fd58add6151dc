"""Many processes that train one model together: launched by torchrun, connected by torch.distributed.

Each process is a rank. `join_ranks` finds out which one this is and how many there are; the rest of training
asks in plain words: this rank's share of a batch, the sum over all ranks, whether it is the one that writes.
Alone, every answer is the trivial one, and nothing of torch.distributed is set up.

Two ways to hold the model. With `ddp` every rank has all of it, and the gradients are averaged. With `fsdp`
(Zhao et al., 2023; torch's FSDP2) every rank holds its share of each parameter, gradient and optimizer
average, as a DTensor, and the whole of one block only while it computes with it.
"""

import functools
import json
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from gptmini.config import GPTConfig, RuntimeConfig
from gptmini.errors import LostRankError
from gptmini.model import GPT, causal_mask

ROLL_CALL_SECONDS = 5.0  # how far apart the ranks may notice that one is lost


@dataclass(frozen=True)
class DistributedContext:
    """The processes that train one model, as one of them sees it; without arguments: this one alone."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Counted on this machine."""
    local_world_size: int = 1
    sharded: bool = False
    """Whether a rank holds only its share of the model (FSDP)."""
    store: Any = None
    """Where ranks leave each other notes, even when one of them is lost."""

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and speaks to people."""
        return self.rank == 0

    @property
    def how(self) -> str:
        """How they hold the model, where that decides the bits of a result."""
        return " with fsdp" if self.sharded else ""

    def __str__(self) -> str:
        return f"{self.world_size}{self.how}"

    # ------------------------------------------------------------------------------------- shares

    def shard_batch(self, starts: np.ndarray) -> np.ndarray:
        """This rank's part of the windows (B,) of a step: (B / ranks,), in order.

        >>> DistributedContext(rank=1, world_size=2).shard_batch(np.array([30, 10, 40, 20]))
        array([40, 20])
        """
        part: np.ndarray = starts.reshape(self.world_size, -1)[self.rank]
        return part

    def shard_batches(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Every `count`-th of the batches (inputs, targets), so that each is on one rank.

        All ranks of a sharded model must compute equally often, as each holds a part of every layer: who has
        none left in the last round gets inputs without targets.

        >>> batches = [(torch.tensor([[i]]), torch.tensor([[i]])) for i in range(3)]
        >>> context = DistributedContext(rank=1, world_size=2)
        >>> [inputs.item() for inputs, targets in context.shard_batches(batches)]
        [1]
        """
        for i, (inputs, targets) in enumerate(batches):
            if i % self.world_size == self.rank:
                yield inputs, targets
        left_out = self.rank >= (i + 1) % self.world_size > 0
        if self.sharded and left_out:
            yield inputs, targets[:0]

    # ----------------------------------------------------------------------------------- agreement

    def all_reduce_sum(self, *values: float) -> list[float]:
        """Each of the values, summed over all ranks."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(_keep(total))
        return total.tolist()

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """The mean over all ranks."""
        if self.world_size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(_keep(total))
        return total / self.world_size

    def all_reduce_max(self, value: int) -> int:
        """The largest of all ranks' values."""
        if self.world_size == 1:
            return value
        largest = torch.tensor(value)
        dist.all_reduce(_keep(largest), dist.ReduceOp.MAX)
        return int(largest)

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """On each machine one rank does what is inside, then the others, who find its files."""
        if self.local_rank > 0:
            self.barrier()
        yield
        if self.local_rank == 0:
            self.barrier()

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            self.all_reduce_sum(0.0)  # through gloo, whatever the device

    def broadcast_text(self, text: str) -> str:
        """What the writing rank says, on every rank."""
        if self.store is None:
            return text
        key = f"told {next(_told)}"
        if self.is_main:
            self.store.set(key, text)
        return self.store.get(key).decode()

    # ----------------------------------------------------------------------------------- the model

    def build(self, config: GPTConfig, device: torch.device, dtype: torch.dtype) -> GPT:
        """A GPT with random weights: the same ones, whatever the number of ranks.

        Sharded, it is on `device` and computes in `dtype`, and a rank never holds more of it than its share
        and one tensor.
        """
        return _build_sharded(config, self.world_size, device, dtype) if self.sharded else GPT(config)

    def wrap(self, model: GPT) -> nn.Module:
        """What to call in training: computes as the model does, and averages gradients over the ranks."""
        if self.world_size == 1 or self.sharded:  # a sharded model averages by itself
            return model
        with warnings.catch_warnings():  # torch 2.13 has a new name for the first option, 2.9 has not
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def accumulate(self, model: nn.Module, last: bool) -> AbstractContextManager[None]:
        """A forward and backward pass that exchanges gradients only if it is the `last` of its step."""
        if last or not isinstance(model, DistributedDataParallel):
            return nullcontext()  # what a sharded model keeps without exchange would be as large as all of it
        return model.no_sync()

    @contextmanager
    def unsharded(self, model: Any) -> Iterator[None]:
        """Inside, `model.features` and `model.lm_head` can be called by themselves, on all ranks alike."""
        if self.sharded:
            model.unshard()
        yield
        if self.sharded:
            model.reshard()

    # ------------------------------------------------------------------------------------- tensors

    def gather_full_state_dict(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every tensor whole on the writing rank, and nothing elsewhere; one at a time, into main memory."""
        if not self.sharded:
            return dict(tensors) if self.is_main else {}
        gathered = {}
        for name, tensor in tensors.items():
            full = full_tensor(tensor)
            if self.is_main:
                gathered[name] = full.cpu()
        self.barrier()  # see _wait_for_gloo
        return gathered

    def broadcast_state_dict(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The writing rank's tensors on every rank, each sent when it is asked for, by all in one order."""
        return tensors if self.world_size == 1 else _Spread(tensors, self)


_told = count()
_kept: deque[Tensor] = deque(maxlen=4)


def _keep(tensor: Tensor) -> Tensor:
    """Remember a tensor that is being exchanged, for `_wait_for_gloo`."""
    _kept.append(tensor)
    return tensor


def _wait_for_gloo(seconds: float = 5.0) -> None:
    """Wait until gloo's threads have let go of what was exchanged last.

    They need Python's lock for that, and whoever frees a process group holds the lock while it waits for
    them to end: too early, both would wait for ever.
    """
    deadline = time.monotonic() + seconds
    while _kept and time.monotonic() < deadline:
        if sys.getrefcount(_kept[0]) <= 2:  # ours, and that of the call
            _kept.popleft()
        else:
            time.sleep(0.001)


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor of which each rank may hold a share; all ranks must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def to_local(tensor: Tensor) -> Tensor:
    """The share of a tensor that this rank holds, in the same memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """The share of a whole tensor that this rank holds of `like`; nothing is sent."""
    if not hasattr(like, "to_local"):
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return to_local(distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None))


def gather_like(shard: Tensor, like: Tensor) -> Tensor:
    """The whole tensor of which each rank has a share that is cut as that of `like`; all ranks must ask."""
    if not hasattr(like, "to_local"):
        return shard
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    shares = DTensor.from_local(
        shard, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return full_tensor(shares)


def copy_full_(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter of which this rank may hold a share."""
    to_local(parameter).copy_(shard_like(value.detach().to(parameter.device), parameter))


class _Spread(Mapping[str, Tensor]):
    """A mapping of tensors that lies on the writing rank."""

    def __init__(self, tensors: Mapping[str, Tensor], distributed: DistributedContext) -> None:
        self._tensors, self._context = tensors, distributed
        kinds = (
            {name: (str(t.dtype), list(t.shape)) for name, t in tensors.items()}
            if distributed.is_main
            else {}
        )
        self._kinds = json.loads(distributed.broadcast_text(json.dumps(kinds)))

    def __getitem__(self, name: str) -> Tensor:
        dtype, shape = self._kinds[name]
        if self._context.is_main:
            tensor = self._tensors[name].cpu().contiguous()
        else:
            tensor = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
        dist.broadcast(_keep(tensor), src=0)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)


# ------------------------------------------------------------------------------------------ joining


def launched_by_torchrun() -> bool:
    """Whether torchrun started this process, as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def join_process_group(config: RuntimeConfig) -> Iterator[DistributedContext]:
    """Find the other ranks and connect to them for as long as the block lasts; alone without torchrun.

    Raises LostRankError, naming the rank, where another one ends or does not answer within
    `rank_timeout_seconds`.
    """
    if not launched_by_torchrun():
        yield DistributedContext()
        return
    distributed = DistributedContext(
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        local_world_size=int(os.environ["LOCAL_WORLD_SIZE"]),
        sharded=config.parallel == "fsdp",
        store=_store(),
    )
    timeout = timedelta(seconds=config.rank_timeout_seconds)
    try:
        distributed.store.set_timeout(timeout)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and config.device != "cpu" else "gloo"
        dist.init_process_group(
            backend,
            store=distributed.store,
            rank=distributed.rank,
            world_size=distributed.world_size,
            timeout=timeout,
        )
        yield distributed
        distributed.barrier()  # torchrun would wait for ever for one that hangs after the others have gone
        _wait_for_gloo()
        dist.destroy_process_group()
    except BaseException as error:
        lost = _is_lost_connection(error)
        missing = find_missing_ranks(distributed, wait=lost)
        if not lost:
            _wait_for_gloo()
            raise
        if not missing:
            raise SystemExit(1) from None  # the others were there to say what went wrong
        raise LostRankError(_about(missing, distributed, config.rank_timeout_seconds)) from None


def _is_lost_connection(error: BaseException) -> bool:
    """Whether torch.distributed raised this; gloo has no error class of its own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def find_missing_ranks(distributed: DistributedContext, wait: bool) -> list[int]:
    """Answer that this rank has ended by an error; who, after some seconds, has not?"""
    keys = [f"ended {rank}" for rank in range(distributed.world_size)]
    try:
        distributed.store.set(keys[distributed.rank], "")
        if not wait:
            return []
        distributed.store.wait(keys, timedelta(seconds=ROLL_CALL_SECONDS))
        return []
    except dist.DistStoreError:
        return [rank for rank, key in enumerate(keys) if not distributed.store.check([key])]
    except dist.DistNetworkError:  # the store is with rank 0, or with the torchrun that started it
        return [0]


def _about(missing: list[int], distributed: DistributedContext, timeout_seconds: float) -> str:
    names = ", ".join(map(str, missing))
    rank, does = ("rank", "does") if len(missing) == 1 else ("ranks", "do")
    return (
        f"{rank} {names} of {distributed.world_size} (counted from 0) {does} not answer: ended, hanging, or "
        f"busy for more than runtime.rank_timeout_seconds = {timeout_seconds:g}; "
        "torchrun --max-restarts N with --resume goes on from the last checkpoint"
    )


@functools.cache
def _store() -> Any:
    """The notes of this attempt of torchrun."""
    store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=60)))
    return PrefixStore(f"gptmini {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def already_reported(line: str) -> bool:
    """Whether another rank has said this line; if not, this one is to."""
    rank = os.environ["RANK"]
    try:
        return _store().compare_set(f"said {line}", "", rank).decode() != rank
    except dist.DistError:
        return False


# ----------------------------------------------------------------------------------------- sharding


def checkpoint_activations(model: GPT) -> None:
    """Keep of each block only its input for the backward pass, which computes the rest once more.

    Activation memory falls to about one block's; a step computes a third more.
    """
    for block in model.blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def _build_sharded(config: GPTConfig, world_size: int, device: torch.device, dtype: torch.dtype) -> GPT:
    """A GPT whose parameters are DTensors over all ranks, with the weights that GPT(config) would draw."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    with torch.device("meta"), DeferredInit() as draws:
        model = GPT(config)
    draw = {name: draws.of[id(parameter)] for name, parameter in model.named_parameters()}
    mesh = init_device_mesh(device.type, (world_size,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    model.to_empty(device=device)
    model.lm_head.weight = model.token_embedding.weight  # to_empty has made two of it
    model.causal_mask = causal_mask(config.context_length).to(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            copy_full_(parameter, draw[name]())
    return model


class DeferredInit(TorchFunctionMode):
    """Inside, torch.nn.init moves the random generator on, but only remembers how to fill a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, Callable[[], Tensor]] = {}  # by id: the last one counts

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) != "torch.nn.init":
            return func(*args, **kwargs)
        tensor, *rest = (kwargs.pop("tensor"), *args) if "tensor" in kwargs else args
        state = torch.get_rng_state()

        def draw() -> Tensor:
            torch.set_rng_state(state)
            return func(torch.empty(tensor.shape, device="cpu"), *rest, **kwargs)

        self.of[id(tensor)] = draw
        draw()
        return tensor
