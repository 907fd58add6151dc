"""A rank whose torchrun was killed: it saves and ends, where it would train on and hold the run folder.

Nothing here imports torch, whose import takes seconds in which the watch already runs.
"""

import os
import signal
import sys
import threading
import time
from contextlib import suppress

from gptmini.errors import UserError

_CHECK_SECONDS = 0.5
_GRACE_SECONDS = 10.0  # for the step and its save, which a rank that hangs in a collective cannot make


def torchrun_world_size() -> int:
    """How many processes torchrun started; 1 without it. UserError where its variables are incomplete."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # which torchrun sets, and slurm does not
        return 1
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        if not os.environ.get(name, "").isdecimal():
            raise UserError(
                f"{name} = {os.environ.get(name)!r}: torchrun sets a number; start with torchrun, or unset "
                "TORCHELASTIC_RUN_ID"
            )
    return int(os.environ["WORLD_SIZE"])


def is_main_rank() -> bool:
    """Whether this process speaks for all that torchrun started; known without torch.distributed."""
    return os.environ.get("RANK", "0") == "0"


def end_with_torchrun() -> None:
    """Under torchrun, act as at SIGTERM when torchrun is killed, as it then cannot pass a signal on."""
    if "TORCHELASTIC_RUN_ID" in os.environ and __name__ not in [t.name for t in threading.enumerate()]:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no C++ stack trace of a store that is gone
        threading.Thread(target=_watch, args=(os.getppid(),), name=__name__, daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:  # an orphan is given to another process
        time.sleep(_CHECK_SECONDS)
    if os.environ.get("LOCAL_RANK") == "0":
        with suppress(OSError, ValueError):
            print("gptmini: torchrun was killed, so its ranks save and end", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)
