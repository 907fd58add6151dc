"""Which device a process computes on."""

import torch

from gptmini.distributed.context import DistributedContext
from gptmini.errors import UserError


def find_device(name: str) -> torch.device:
    """The device called `name`; `auto` is CUDA, else MPS, else the CPU. UserError if it is absent."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UserError(f"device = {name!r} must be auto, cpu, cuda, cuda:0 or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name} was asked for, but this machine has {_cuda_devices()}; use cpu or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps was asked for, but this machine has no Apple GPU; use cpu or auto")
    return device


def find_device_of_rank(name: str, distributed: DistributedContext) -> torch.device:
    """A GPU of its own for each rank of this machine, or the CPU for all; UserError if there are too few."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UserError(
            f"runtime.device = {name} is one device, but there are {distributed.world_size} ranks; use auto"
        )
    if name == "cpu":
        return torch.device("cpu")
    if distributed.local_world_size > torch.cuda.device_count():
        raise UserError(
            f"runtime.device = cuda: {distributed.local_world_size} ranks on this machine need as many GPUs, "
            f"but it has {_cuda_devices()}; use a smaller --nproc-per-node"
        )
    torch.cuda.set_device(distributed.local_rank)
    return torch.device("cuda", distributed.local_rank)


def _cuda_devices() -> str:
    count = torch.cuda.device_count()
    return f"{count} CUDA device{'s' if count > 1 else ''}" if count else "none that PyTorch can use"
