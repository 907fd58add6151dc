"""Token files and learned tokenizers, kept in the cache folder and found again by what they were made from.

An entry is a folder named by a digest of everything that decides its content: for tokens the text, the split
and the tokenizer; for a tokenizer its config and the text that it learned from.
"""

import errno
import hashlib
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from gptmini import atomic_io
from gptmini.config import TokenizerConfig
from gptmini.data.datasets import cache_folder
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import DamagedError, UserError
from gptmini.lock import lock

FORMAT_VERSION = 2  # a new format makes new entries and leaves the old ones alone


def tokens_folder(corpus_digest: str, train_bytes: int, tokenizer: Tokenizer) -> Path:
    """Where the tokens of a text are, of which the first `train_bytes` are for training."""
    return _entry("tokens", corpus_digest, train_bytes, tokenizer.digest) / "tokens"


def tokenizer_folder(config: TokenizerConfig, corpus_digest: str, train_bytes: int) -> Path | None:
    """Where a text's tokenizer is; None where it is read from a folder of the user's each time."""
    if config.folder is not None:
        return None
    # what it learns from: chars sees the whole text, bpe the training split, and the others learn nothing
    learned_from = {"chars": (corpus_digest,), "bpe": (corpus_digest, train_bytes)}.get(config.kind, ())
    return _entry("tokenizers", config.model_dump_json(), *learned_from) / "tokenizer"


def _entry(kind: str, *made_from: str | int) -> Path:
    key = hashlib.sha256(json.dumps([FORMAT_VERSION, *made_from]).encode()).hexdigest()[:32]
    return cache_folder() / kind / key


Found = TypeVar("Found")


def find_or_make(
    folder: Path, open_folder: Callable[[Path], Found], make: Callable[[], object], quiet: bool
) -> Found:
    """What `open_folder` reads in a folder of the cache; `make` makes it first if it is missing or damaged.

    A folder that is there is used without a lock, as the cache may be one that this process cannot write.
    Otherwise processes that need the same folder wait for the first of them to make it. Raises OSError where
    the folder cannot be read or written; nothing is removed then, as it may be whole.
    """
    try:
        with suppress(DamagedError):  # or not there yet
            return open_folder(folder)
        waiting = "" if quiet else "waiting for another process that prepares the same text"
        with lock(folder.parent / "lock", str(folder.parent), waiting):
            # what a killed process left; safe now that nobody else is writing here
            atomic_io.clean_leftovers(folder.parent, "tokens|tokenizer")
            if folder.exists():  # made meanwhile, or damaged
                try:
                    return open_folder(folder)
                except DamagedError as error:
                    if not quiet:
                        print(f"{error}: {folder} is made again", file=sys.stderr)
                    atomic_io.remove_folder(folder)
            make()
            return open_folder(folder)
    except OSError as error:
        if error.errno is None:  # DamagedError
            raise
        unwritable = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
        advice = ": set GPTMINI_CACHE_DIR to a folder that can be written" if unwritable else ""
        raise OSError(error.errno, f"{error.strerror}{advice}", error.filename or str(folder)) from None


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of an entry. Raises DamagedError where it is not the one that was saved."""
    try:
        found, saved_digest = Tokenizer.load(folder), (folder / "digest").read_bytes()
    except FileNotFoundError as error:
        raise DamagedError(f"{error.filename}: damaged: it is missing") from None
    except UserError as error:
        raise DamagedError(f"{folder}: damaged: {error}") from None
    if found.digest.encode() != saved_digest:
        raise DamagedError(f"{folder}: damaged: holds another tokenizer than was saved")
    return found


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Make the folder of a tokenizer, with its digest."""
    with atomic_io.new_folder(folder) as new:
        tokenizer.save(new)
        atomic_io.create_file(new / "digest", tokenizer.digest.encode())
