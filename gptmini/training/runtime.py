"""Hardware detection and setup: device, precision, threads, memory allocator, random seed."""

import contextlib
import ctypes
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch

from gptmini.config import RuntimeConfig
from gptmini.distributed.context import DistributedContext
from gptmini.distributed.device import find_device, find_device_of_rank
from gptmini.errors import UserError
from gptmini.training.kernels import kernel_digest

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """What a run computes on, with every `auto` resolved."""

    device: torch.device
    precision: str
    """fp32, bf16 or fp16: the number format of the forward pass."""
    threads: int
    compile: bool
    distributed: DistributedContext = DistributedContext()  # noqa: RUF009  # frozen

    def autocast(self) -> torch.autocast:
        """Matrix products inside the block run in `precision`; weights and gradients stay float32."""
        dtype = DTYPES[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "fp32")

    @property
    def matmul_dtype(self) -> torch.dtype:
        """The dtype of the fastest matrix product that is accurate enough for Muon."""
        return torch.float32 if self.precision == "fp32" and self.device.type == "cpu" else torch.bfloat16

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A CPU tensor on the run's device."""
        if self.device.type == "cuda":
            # The copy from pinned memory runs beside the computation; the CPU does not wait for it.
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Scales the loss up so that float16 gradients do not underflow; disabled in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def environment(self) -> dict[str, str]:
        """Everything outside the config that the bits of a result depend on."""
        # CPUs that share an instruction set (as PyTorch uses it, such as AVX2) give equal bits.
        is_cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if is_cuda else torch.backends.cpu.get_cpu_capability()
        return {
            "torch": torch.__version__,
            "device": f"{self.device.type} ({name})",
            "precision": self.precision,
            "threads": str(self.threads),
            "compile": str(self.compile).lower(),
            "ranks": str(self.distributed),
        }

    @cached_property
    def kernels(self) -> str:
        """Digest of the matrix kernels that this run uses."""
        return kernel_digest(self.device, {torch.float32, DTYPES[self.precision], self.matmul_dtype})

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.device.type == "cpu" else ""
        fsdp = " with fsdp" if self.distributed.sharded else ""
        ranks = f"{self.distributed.world_size} ranks{fsdp}, each " if self.distributed.world_size > 1 else ""
        return f"{ranks}{self.environment()['device']}, {self.precision}{threads}, torch {torch.__version__}"


def start_runtime(config: RuntimeConfig, distributed: DistributedContext | None = None) -> Runtime:
    """Resolve what is `auto` and set the process up for it: threads, allocator, float32 precision.

    Raises UserError if the config asks for what this machine does not have.
    """
    distributed = distributed or DistributedContext()
    several = distributed.world_size > 1
    device = find_device_of_rank(config.device, distributed) if several else find_device(config.device)

    precision = _fastest_precision(device) if config.precision == "auto" else config.precision
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"runtime.precision = fp16 needs a CUDA device, not {device}; use fp32 or bf16")
    if precision == "fp16" and distributed.sharded:
        raise UserError("runtime.precision = fp16 does not go with runtime.parallel = fsdp; use bf16 or fp32")

    check_threads(torch.get_num_threads() if config.threads == "auto" else config.threads)
    if config.threads != "auto":
        torch.set_num_threads(config.threads)
    elif several:  # torchrun sets one thread per process; share the cores that it may use instead
        affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // distributed.local_world_size))
    if device.type == "cpu":
        tune_malloc(keep=not (distributed.sharded or config.activation_checkpointing))  # else save memory
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32: float32 range, 10 mantissa bits, tensor cores
    if config.compile:
        with explain_compile_failure():  # before anything is written
            torch.compile(torch.neg)(torch.zeros(8, device=device))
    return Runtime(device, precision, torch.get_num_threads(), config.compile, distributed)


def check_threads(count: int) -> None:
    """RuntimeError where the system starts fewer threads: OpenMP would end the process when it needs them."""
    done = threading.Event()
    with ThreadPoolExecutor(count) as pool:
        try:
            for _ in range(count):  # a thread for each, as all wait
                pool.submit(done.wait)
        finally:
            done.set()


@contextlib.contextmanager
def explain_compile_failure() -> Iterator[None]:
    """Inside, what torch.compile cannot do is a UserError of one line instead of the compiler's many."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"runtime.compile = true: torch.compile fails here ({reason[:200]}); install a C++ compiler such "
            "as g++, or set it to false"
        ) from None


def tune_malloc(keep: bool) -> None:
    """Let the C library keep the memory of freed tensors for the next ones, or return it at once.

    By default, glibc returns large blocks to the kernel, which zeroes fresh pages for the next tensor of
    that size: a seventh of a small model's step. Kept memory fragments, though, and takes more in all.
    """
    # M_TRIM_THRESHOLD: free bytes at the end of the heap before any are returned.
    # M_MMAP_THRESHOLD: larger blocks are mapped one by one, and returned when freed; 2**25 is its maximum.
    # M_ARENA_MAX: one heap, so that the backward pass's own thread reuses the forward pass's memory.
    settings = {-1: 2**30, -3: 2**25, -8: 1} if keep else {-3: 2**20}
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other C libraries have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        for number, value in settings.items():
            mallopt(ctypes.c_int(number), ctypes.c_int(value))


def seed_everything(*key: int) -> None:
    """Seed PyTorch's generators with a number that depends on all of `key` and on nothing else.

    Called with (seed, step, micro step) before each forward pass, it makes dropout a function of the step:
    no generator state needs to be saved, and nothing else that draws random numbers can shift it.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def _fastest_precision(device: torch.device) -> str:
    """bf16 where the hardware multiplies it; emulated bf16 is many times slower than float32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bf16"
    return "fp32"


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this process has held so far: resident on a CPU, PyTorch's reserved part on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
