"""The machine under the measurements: what it is, what it can do at best, and how time is taken on it.

The tasks of one table are done in turn, round after round, so that what else the machine does disturbs all
alike; each figure is a median of the rounds. Compare ratios, not seconds of different runs.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def describe() -> str:
    """What the figures depend on, in a line."""
    device = f"CUDA {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "no GPU"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{torch.get_num_threads()} threads, {capability}, {device}, torch {torch.__version__}"


def in_turn(tasks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds that each task takes in each round; one more round goes before, to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(1 + rounds):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return {name: counted for name, (_, *counted) in seconds.items()}


def times_faster(rounds: Mapping[str, list[float]], name: str, reference: str) -> str:
    """How many times faster than the reference: the median of each round's own ratio."""
    return (
        f"{median([a / b for a, b in zip(rounds[reference], rounds[name], strict=True)]):.2f} x {reference}"
    )


def read_bandwidth(rounds: int = 5) -> float:
    """Bytes per second at which 1 GiB is read, by the fastest of three plain readers in its best round."""
    memory = torch.ones(2**16, 2**12)
    readers = {"sum": memory.sum, "maximum": memory.amax, "product": lambda: memory.mv(memory[0])}
    return memory.nbytes / min(map(min, in_turn(readers, rounds).values()))


def product_flops(dtype: torch.dtype, rounds: int = 9) -> float:
    """Floating-point operations per second of a 2048 x 2048 matrix product, in its best round."""
    n = 2048
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    return 2 * n**3 / min(in_turn({"product": lambda: a @ b}, rounds)["product"])
