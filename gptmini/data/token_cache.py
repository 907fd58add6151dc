"""Token files and learned tokenizers, kept in the cache folder and found again by what they were made from.

An entry is a folder named by a digest of everything that decides its content: for tokens the text, the split
and the tokenizer; for a tokenizer its config and the text that it learned from.
"""

import hashlib
import itertools
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gptmini import atomic_io
from gptmini.config import TokenizerConfig
from gptmini.data.datasets import cache_folder
from gptmini.data.token_files import TokenData, open_token_files
from gptmini.data.tokenizers import Tokenizer, load_tokenizer
from gptmini.errors import InUseError, UserError

FORMAT_VERSION = 2  # a new format makes new entries and leaves the old ones alone


def tokens_entry(corpus_digest: str, train_bytes: int, tokenizer: Tokenizer) -> Path:
    """The entry for the tokens of a text, of which the first `train_bytes` are for training."""
    return _entry("tokens", corpus_digest, train_bytes, tokenizer.digest)


def tokenizer_entry(config: TokenizerConfig, corpus_digest: str, train_bytes: int) -> Path | None:
    """The entry for a text's tokenizer; None where it is read from a folder of the user's each time."""
    if config.folder is not None:
        return None
    # what it learns from: chars sees the whole text, bpe the training split, and the others learn nothing
    learned_from = {"chars": (corpus_digest,), "bpe": (corpus_digest, train_bytes)}.get(config.kind, ())
    return _entry("tokenizers", config.model_dump_json(), *learned_from)


def _entry(kind: str, *made_from: str | int) -> Path:
    key = hashlib.sha256(json.dumps([FORMAT_VERSION, *made_from]).encode()).hexdigest()[:32]
    return cache_folder() / kind / key


@contextmanager
def exclusive(entry: Path, quiet: bool) -> Iterator[None]:
    """Hold an entry for the block: wait for other processes, and remove what a killed one left in it."""
    with ExitStack() as stack:
        for attempt in itertools.count():
            try:
                stack.enter_context(atomic_io.lock(entry / "lock", str(entry)))
                break
            except InUseError:
                if attempt == 0 and not quiet:
                    print("waiting for another process that prepares the same text", file=sys.stderr)
                time.sleep(0.1)
        atomic_io.clean_leftovers(entry, "tokens|tokenizer")  # safe now that nobody else is writing here
        yield


def find_tokens(entry: Path) -> TokenData | None:
    """The token files of an entry, or None. A damaged folder is removed, so that it is made again."""
    folder = entry / "tokens"
    if not folder.exists():
        return None
    try:
        return open_token_files(folder)
    except (OSError, UserError):  # DamagedError is an OSError; what made the files is still there
        atomic_io.remove_folder(folder)
        return None


def find_tokenizer(entry: Path) -> Tokenizer | None:
    """The tokenizer of an entry, or None where it is missing or not the one that was saved."""
    folder = entry / "tokenizer"
    try:
        found = load_tokenizer(folder)
        saved_digest = (folder / "digest").read_text(encoding="ascii")
    except (OSError, UserError, UnicodeDecodeError):
        return None
    return found if found is not None and found.digest == saved_digest else None


def save_tokenizer(entry: Path, tokenizer: Tokenizer) -> None:
    """Put a tokenizer and its digest into an entry, in place of a damaged one."""
    folder = entry / "tokenizer"
    if folder.exists():
        atomic_io.remove_folder(folder)
    with atomic_io.new_folder(folder) as new:
        tokenizer.save(new)
        atomic_io.create_file(new / "digest", tokenizer.digest.encode())
