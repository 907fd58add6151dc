"""One batch at a time for each model, a queue before it, and an end to what nobody awaits."""

import asyncio
import contextlib
import threading
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
MAX_WAITING = 32  # jobs of one model that wait or run
RETRY_AFTER_SECONDS = 5


class BusyError(Exception):
    """The queue before a model is full."""


class Job:
    """What a request computes, item by item, and the queue on which the request awaits the items."""

    def __init__(self, work: Callable[[], Iterator[Any]]) -> None:
        self.work = work
        self.loop = asyncio.get_running_loop()
        self.items: asyncio.Queue[tuple[Any, BaseException | None]] = asyncio.Queue()
        self.gone = False  # whether nobody awaits them any more
        self._iterator: Iterator[Any] | None = None

    def step(self) -> bool:
        """Compute the next item, in the thread of all models; returns whether the job goes on."""
        try:
            if self._iterator is None:
                self._iterator = iter(()) if self.gone else self.work()
            self._hand_over(next(self._iterator))
            if not self.gone:
                return True
        except StopIteration:
            self._hand_over(None, StopAsyncIteration())
        except BaseException as error:
            self._hand_over(None, error)
        self._iterator = iter(())  # closes the generator
        return False

    def _hand_over(self, item: Any, end: BaseException | None = None) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended, and its loop is closed
            self.loop.call_soon_threadsafe(self.items.put_nowait, (item, end))


class Jobs:
    """Computes all jobs in one thread: those of a model one after another, those of several item by item.

    One thread, because every item keeps all cores busy, and because kernels for the CPU keep a team of
    threads for each thread that calls them, or bear no second caller at all.
    """

    def __init__(self) -> None:
        self._waiting: defaultdict[str, deque[Job]] = defaultdict(deque)  # the first of each is at work
        self._turns: SimpleQueue[str] = SimpleQueue()  # the models that are at work
        self._lock = threading.Lock()
        threading.Thread(target=self._compute, name="models", daemon=True).start()

    async def run(self, name: str, work: Callable[[], T]) -> T:
        """What `work()` returns, when its turn comes."""
        async with contextlib.aclosing(self.stream(name, lambda: iter((work(),)))) as items:
            return await anext(items)

    async def stream(self, name: str, work: Callable[[], Iterator[T]]) -> AsyncGenerator[T, None]:
        """The items of `work()` as they are computed for the model `name`.

        Raises BusyError at once where too many wait already, and what `work` raises. When this generator is
        closed or its task cancelled, the work ends before its next item.
        """
        job, waiting = Job(work), self._waiting[name]
        with self._lock:
            if len(waiting) >= MAX_WAITING:
                raise BusyError(f"{name} has {MAX_WAITING} requests waiting: try again later")
            waiting.append(job)
            if len(waiting) == 1:
                self._turns.put(name)
        try:
            while True:
                item, end = await job.items.get()
                if isinstance(end, StopAsyncIteration):
                    return
                if end is not None:
                    raise end
                yield item
        finally:
            job.gone = True
            with self._lock:
                if job in waiting and waiting[0] is not job:
                    waiting.remove(job)

    def _compute(self) -> None:
        while True:
            name = self._turns.get()
            waiting = self._waiting[name]
            goes_on = waiting[0].step()
            with self._lock:
                if not goes_on:
                    waiting.popleft()
                if waiting:
                    self._turns.put(name)
