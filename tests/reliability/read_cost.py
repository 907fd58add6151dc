"""What checking prepared tokens costs: `python tests/reliability/read_cost.py`.

Reads random windows of a token file of 200 MB as batches of 64: mapped into memory, read without a check, and
as TokenFile reads them. The file is in the page cache. Prints CPU microseconds a window, the
least of 9.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from gptmini.data.batching import stack_windows
from gptmini.data.token_files import BLOCK_BYTES, TokenFile, create_token_file

TOKENS, BATCH, BATCHES, REPEATS = 100_000_000, 64, 20, 9
DTYPE = np.dtype("<u2")


class Unchecked(TokenFile):
    """Reads the same blocks, and compares nothing."""

    def _read_block(self, i, advice=""):
        return os.pread(self._file, BLOCK_BYTES, i * BLOCK_BYTES)


def microseconds(stream, length):
    """CPU time of each window of `length` tokens, the least of REPEATS."""
    rng, times = np.random.default_rng(0), []
    for _ in range(REPEATS):
        batches = [rng.integers(0, TOKENS - length - 1, BATCH) for _ in range(BATCHES)]
        started = time.process_time()
        for starts in batches:
            stack_windows(stream, starts, length)
        times.append((time.process_time() - started) / BATCHES / BATCH * 1e6)
    return min(times)


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.bin"
        tokens = np.random.default_rng(0).integers(0, 50_000, TOKENS, dtype=np.uint16).astype(DTYPE)
        create_token_file(path, [tokens.tobytes()])
        streams = {
            "mapped": np.memmap(path, DTYPE, mode="r"),
            "read": Unchecked(path, DTYPE, TOKENS),
            "checked": TokenFile(path, DTYPE, TOKENS),
        }
        started = time.process_time()
        streams["checked"].verify()
        seconds = (time.process_time() - started) / (TOKENS * DTYPE.itemsize / 1e9)
        print(f"the whole file: {seconds:.1f} CPU seconds for a gigabyte")
        for length in (64, 256, 1024):
            costs = (f"{name} {microseconds(stream, length):5.1f}" for name, stream in streams.items())
            print(f"{length:5} tokens: " + ", ".join(costs))


if __name__ == "__main__":
    main()
