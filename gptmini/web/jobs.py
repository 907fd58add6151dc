"""One batch at a time for each model: a thread, a queue before it, and an end to what nobody awaits."""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
MAX_WAITING = 32  # jobs of one model that wait or run
RETRY_AFTER_SECONDS = 5


class BusyError(Exception):
    """The queue before a model is full."""


class Jobs:
    """Computes in one thread for each model, so that requests take turns in the order in which they came.

    One thread too because OpenMP keeps a team of its own for every thread that computes.
    """

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()
        self._threads: dict[str, ThreadPoolExecutor] = {}

    async def run(self, name: str, work: Callable[[], T]) -> T:
        """What `work()` returns, when its turn comes."""
        async with contextlib.aclosing(self.stream(name, lambda: iter((work(),)))) as items:
            return await anext(items)

    async def stream(self, name: str, work: Callable[[], Iterator[T]]) -> AsyncGenerator[T, None]:
        """The items of `work()` as they are computed for the model `name`.

        Raises BusyError at once where too many wait already, and what `work` raises. When this iterator is
        closed or its task cancelled, the work ends before its next item.
        """
        if self._waiting[name] >= MAX_WAITING:
            raise BusyError(f"{name} has {MAX_WAITING} requests waiting: try again later")
        thread = self._threads.setdefault(name, ThreadPoolExecutor(1, f"model {name}"))
        loop, gone = asyncio.get_running_loop(), threading.Event()
        items: asyncio.Queue[tuple[Any, BaseException | None]] = asyncio.Queue()
        self._waiting[name] += 1

        def hand_over(item: Any, end: BaseException | None = None) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended, and its loop is closed
                loop.call_soon_threadsafe(self._receive, name, items, item, end)

        def compute() -> None:
            try:
                for item in () if gone.is_set() else work():
                    hand_over(item)
                    if gone.is_set():
                        break
                hand_over(None, StopAsyncIteration())
            except BaseException as error:
                hand_over(None, error)

        thread.submit(compute)
        try:
            while True:
                item, end = await items.get()
                if isinstance(end, StopAsyncIteration):
                    return
                if end is not None:
                    raise end
                yield item
        finally:
            gone.set()

    def _receive(
        self, name: str, items: asyncio.Queue[tuple[Any, BaseException | None]], item: Any, end: Any
    ) -> None:
        """In the loop's thread: pass an item on; with the last one, the job leaves the queue."""
        items.put_nowait((item, end))
        if end is not None:
            self._waiting[name] -= 1
