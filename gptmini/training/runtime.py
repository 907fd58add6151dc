"""The machine: device, number format, threads, signals. The one place that asks what there is."""

import contextlib
import ctypes
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from gptmini.config import RuntimeConfig
from gptmini.distributed.context import DistributedContext
from gptmini.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """What a run computes on, resolved: no `auto` is left."""

    device: torch.device
    precision: str
    threads: int
    compile: bool
    distributed: DistributedContext = DistributedContext()  # noqa: RUF009  # frozen

    def autocast(self) -> torch.autocast:
        """The forward pass in the run's number format; weights, gradients and loss stay float32."""
        dtype = DTYPES[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "fp32")

    @property
    def matmul_dtype(self) -> torch.dtype:
        """The number format of the fastest matrix product that is good enough for Muon."""
        return torch.float32 if self.precision == "fp32" and self.device.type == "cpu" else torch.bfloat16

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A CPU tensor on the run's device; to CUDA without waiting for the copy."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Scales the loss so that float16 gradients do not underflow; does nothing in other formats."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def environment(self) -> dict[str, str]:
        """Everything outside the config that the bits of a result depend on."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_name()
        return {
            "torch": torch.__version__,
            "device": f"{self.device.type} ({name})",
            "precision": self.precision,
            "threads": str(self.threads),
            "compile": str(self.compile).lower(),
            "ranks": str(self.distributed),
        }

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.device.type == "cpu" else ""
        several, fsdp = self.distributed.world_size > 1, " with fsdp" if self.distributed.sharded else ""
        ranks = f"{self.distributed.world_size} ranks{fsdp}, each " if several else ""
        return f"{ranks}{self.environment()['device']}, {self.precision}{threads}, torch {torch.__version__}"


ALONE = DistributedContext()


def start_runtime(config: RuntimeConfig, distributed: DistributedContext = ALONE) -> Runtime:
    """Resolve what is `auto`, set the process up for it, and say what was chosen.

    Raises UserError where the config asks for what this machine does not have.
    """
    device = (
        find_device(config.device)
        if distributed.world_size == 1
        else _find_device_of_rank(config.device, distributed)
    )
    if config.precision == "fp16" and device.type != "cuda":
        raise UserError(f"runtime.precision = fp16 needs a CUDA device, not {device}; use fp32 or bf16")
    if config.threads != "auto":
        torch.set_num_threads(config.threads)
    elif distributed.world_size > 1:  # torchrun asks for one thread, wherever the user does not
        torch.set_num_threads(max(1, _cores() // distributed.local_world_size))
    if device.type == "cpu":
        tune_malloc(not (distributed.sharded or config.activation_checkpointing))  # which are to save memory
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32: float32 range, 10 mantissa bits, tensor cores
    precision = _fastest_precision(device) if config.precision == "auto" else config.precision
    if distributed.sharded and precision == "fp16":
        raise UserError("runtime.precision = fp16 does not go with runtime.parallel = fsdp; use bf16 or fp32")
    return Runtime(device, precision, torch.get_num_threads(), config.compile, distributed)


def _cores() -> int:
    """Cores that this process may use; macOS and Windows tell only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tune_malloc(keep: bool) -> None:
    """Let the C library keep the memory of freed tensors for the next ones, or give it back at once.

    By itself, glibc hands large blocks back to the kernel, which zeroes fresh pages for the next tensor of
    that size: a seventh of a small model's step. Kept memory has holes, though, into which not every tensor
    fits. Other C libraries know no mallopt, and are left as they are.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        settings = {
            -1: 2**30,  # M_TRIM_THRESHOLD: bytes free at the end before any go
            -3: 2**25,  # M_MMAP_THRESHOLD: its largest allowed value
            -8: 1,  # M_ARENA_MAX: the backward pass has a thread of its own, but is to reuse the same memory
        }
        for number, value in settings.items() if keep else {-3: 2**20}.items():
            mallopt(ctypes.c_int(number), ctypes.c_int(value))


def seed_everything(*key: int) -> None:
    """Seed PyTorch's generators with a number that depends on all of `key` and on nothing else.

    Called with (seed, step, micro step) before each forward pass, it makes dropout a function of the step:
    no generator state needs to be saved, and nothing else that draws random numbers can shift it.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def find_device(name: str) -> torch.device:
    """The device called `name`; `auto` is CUDA, else MPS, else the CPU. UserError where it is absent."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name} was asked for, but this machine has {_cuda_devices()}; use cpu or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps was asked for, but this machine has no Apple GPU; use cpu or auto")
    return device


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held so far: resident on a CPU, PyTorch's share on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _find_device_of_rank(name: str, distributed: DistributedContext) -> torch.device:
    """One of this machine's GPUs for each rank, or the CPU for all; UserError where that cannot be."""
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


def cpu_name() -> str:
    """The processor's instruction set as PyTorch uses it, such as AVX2: two machines of one set agree."""
    return torch.backends.cpu.get_cpu_capability()


def _cuda_devices() -> str:
    count = torch.cuda.device_count()
    return f"{count} CUDA device{'s' if count > 1 else ''}" if count else "none that PyTorch can use"


def _fastest_precision(device: torch.device) -> str:
    """bf16 where the hardware multiplies it; emulated bf16 is many times slower than float32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bf16"
    return "fp32"


class StopSignal:
    """Whether SIGINT (Ctrl-C) or SIGTERM has come; a second one ends the process at once.

    That is safe at any instant: every file is written whole or not at all.
    """

    def __init__(self) -> None:
        self.received = 0

    def __bool__(self) -> bool:
        return self.received != 0

    def __int__(self) -> int:
        return self.received

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number


@contextlib.contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Catch SIGINT and SIGTERM inside the block (in the main thread; elsewhere nothing can)."""
    stop = StopSignal()
    with _on_signal(stop._receive):
        yield stop


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone after the block, also where SIGINT or SIGTERM ends the process inside it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.ExitStack() as signals:

        def end(number: int, frame: FrameType | None) -> None:
            shutil.rmtree(folder, ignore_errors=True)
            signals.close()
            signal.raise_signal(number)  # once more, for whoever handled it before

        signals.enter_context(_on_signal(end))
        yield Path(folder)


@contextlib.contextmanager
def _on_signal(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `handle` inside the block (in the main thread; elsewhere nothing can)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
