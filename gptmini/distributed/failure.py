"""A rank that crashes or hangs: which one was it, and which rank reports it.

A collective fails on every rank when one is lost, without naming it. What still works is torchrun's key-value
store, a server that outlives the process group: each rank that fails marks itself there, and the ranks
without a mark after some seconds are the lost ones.
"""

import functools
import os
import socket
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from gptmini.distributed.parent import torchrun_world_size
from gptmini.errors import LostRankError, UserError

FAILURE_GRACE_SECONDS = 5.0  # how far apart the ranks may notice that one is lost


@functools.cache
def shared_store() -> PrefixStore:
    """torchrun's key-value store; a restart gets a namespace of its own. LostRankError if it is gone."""
    try:
        # One in torchrun's process was there before this one: torch would retry, and log stack traces.
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            socket.create_connection(address, timeout=20).close()
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=60)))
    except (OSError, dist.DistError):
        raise LostRankError("torchrun has ended, or does not respond; start it again with --resume") from None
    return PrefixStore(f"gptmini {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def is_lost_connection(error: BaseException) -> bool:
    """Whether torch.distributed raised this; gloo has no error class of its own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def find_missing_ranks(store: Store, rank: int, world_size: int, *, wait: bool) -> list[int]:
    """Mark this rank as failed; with `wait`, return the ranks that have not done so after some seconds.

    All of them where each has lost the others and none has failed by itself: then no other line says why.
    """
    keys = [f"failed {other}" for other in range(world_size)]
    try:
        store.set(keys[rank], "lost" if wait else "failed")
        if not wait:
            return []
        with suppress(dist.DistStoreError):  # the wait timed out
            store.wait(keys, timedelta(seconds=FAILURE_GRACE_SECONDS))
        marks = [store.get(key) if store.check([key]) else b"" for key in keys]
    except dist.DistNetworkError:  # the store lives in rank 0, or in the torchrun that started it
        return [0]
    return [other for other, mark in enumerate(marks) if not mark or {*marks} == {b"lost"}]


def lost_ranks(missing: list[int], world_size: int, timeout_seconds: float) -> LostRankError:
    """The error that names the missing ranks and says how to continue."""
    names = ", ".join(map(str, missing))
    rank, does = ("rank", "does") if len(missing) == 1 else ("ranks", "do")
    found = (
        f"{rank} {names} of {world_size} (counted from 0) {does} not respond: crashed, hanging, or busy for"
    )
    if len(missing) == world_size:
        found = f"the {world_size} ranks have lost each other: a broken network, or one was busy for"
    return LostRankError(
        f"{found} more than runtime.rank_timeout_seconds = {timeout_seconds:g}; "
        "torchrun --max-restarts N with --resume continues from the last checkpoint"
    )


def already_reported(line: str) -> bool:
    """Whether another rank has printed this line; if not, this rank claims it and is to print it."""
    try:
        if torchrun_world_size() == 1:
            return False
        rank = os.environ["RANK"]
        return shared_store().compare_set(f"reported {line}", "", rank).decode() != rank
    except (dist.DistError, LostRankError, UserError):
        return False
