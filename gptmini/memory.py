"""Out of memory or threads, as one line: what was asked for, what there is, what to lower."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gptmini.errors import OutOfMemoryError

# What PyTorch, CUDA, NumPy and the C++ library say; only some have an error class of their own.
_MEMORY = re.compile(
    "out of memory|allocate memory|not enough memory|bad_alloc|ALLOC_FAILED|failed to map segment|"
    "could not create a (primitive|memory)|calculation overflowed|multiplication overflow|"
    "without exception set",
    re.IGNORECASE,
)
_THREADS = re.compile("start new thread|Resource temporarily unavailable")
_ASKED = re.compile(r"allocate (\d+) bytes|[Aa]llocate ([\d.]+ [KMGTPE]?i?B)")
_FREE = re.compile(r"of which ([\d.]+ [KMGTPE]?i?B) is free")


@contextmanager
def explain_shortage(advice: str) -> Iterator[None]:
    """Inside, running out of memory or threads raises OutOfMemoryError; its line ends with `advice`."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except (MemoryError, RuntimeError, ImportError, OSError, SystemError) as error:
        if (line := _describe(error, advice)) is None:
            raise
        raise OutOfMemoryError(line) from None


def _describe(error: Exception, advice: str) -> str | None:
    """What was asked for, what there is, and what to do; None for an error that is no shortage."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return None  # of a file, which its own line names
    if _THREADS.search(text):
        return "no more threads can be started: raise their limit (ulimit -u), or lower runtime.threads"
    if not (_MEMORY.search(text) or isinstance(error, MemoryError)):
        return None
    found = []
    if asked := _ASKED.search(text):
        found.append(f"{asked[2] or gibibytes(int(asked[1]))} asked for")
    if free := _FREE.search(text):
        found.append(f"{free[1]} available")
    elif (available := available_bytes()) is not None:
        found.append(f"{gibibytes(available)} available")
    sizes = f" ({', '.join(found)})" if found else ""
    return f"out of memory{sizes}: {advice}"


def available_bytes(*, at_all: bool = False) -> int | None:
    """Memory that this process can get now, or with `at_all` if no other ran; None where nothing says it."""
    limits = []
    with suppress(OSError, KeyError):  # on Linux
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {name: 1024 * int(size) for name, size, *_ in map(str.split, lines)}
        keys = ("MemTotal:", "SwapTotal:") if at_all else ("MemAvailable:",)
        limits.append(sum(sizes[key] for key in keys))
    with suppress(OSError, ValueError):  # in a container; "max" is no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    with suppress(ImportError, OSError):  # ulimit -v; Windows has none
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            limits.append(max(0, limit - (0 if at_all else pages * resource.getpagesize())))
    return min(limits, default=None)


def gibibytes(size: int) -> str:
    """Bytes in GiB, for people.

    >>> gibibytes(3 << 29)
    '1.50 GiB'
    """
    return f"{size / 2**30:,.2f} GiB"
