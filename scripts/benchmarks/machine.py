"""What the machine is, what it can reach at best, and how benchmarks take time on it.

The tasks of a table are interleaved, round after round, so that other load on the machine affects all of them
alike; each number is the median of the rounds. Compare ratios, not seconds of different runs.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def describe_machine() -> str:
    """A line with what the numbers depend on."""
    device = f"CUDA {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "no GPU"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{torch.get_num_threads()} threads, {capability}, {device}, torch {torch.__version__}"


def time_interleaved(tasks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each task in each round, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(1 + rounds):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return {name: measured for name, (_, *measured) in seconds.items()}


def speedup(rounds: Mapping[str, list[float]], name: str, reference: str) -> str:
    """Speedup over the reference: the median of the ratios within each round."""
    return (
        f"{median([a / b for a, b in zip(rounds[reference], rounds[name], strict=True)]):.2f} x {reference}"
    )


def read_bandwidth(rounds: int = 5) -> float:
    """Memory bandwidth in bytes per second: 1 GiB read by the fastest of three reductions."""
    memory = torch.ones(2**16, 2**12)
    readers = {"sum": memory.sum, "max": memory.amax, "matvec": lambda: memory.mv(memory[0])}
    return memory.nbytes / min(map(min, time_interleaved(readers, rounds).values()))


def matmul_flops(dtype: torch.dtype, rounds: int = 9) -> float:
    """FLOP/s of a 2048 x 2048 matrix product in its best round."""
    n = 2048
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    return 2 * n**3 / min(time_interleaved({"matmul": lambda: a @ b}, rounds)["matmul"])
