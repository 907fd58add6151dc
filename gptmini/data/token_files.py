"""The tokens of a corpus on disk: a folder with train.bin, val.bin, meta.json and the tokenizer's files.

A .bin file is the ids one after another, uint16 or uint32 (little-endian), and nothing else; train.sha256 and
val.sha256 have a digest of each block, and SHA256SUMS the digests of all other files. All is compared with
its digest when the folder is opened, and each block again when it is read. Nothing here imports torch.
"""

import json
import os
import sys
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from pydantic import Field

from gptmini import atomic_io
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import DamagedError
from gptmini.schema import Section, validate

BLOCK_BYTES = 4096  # read and hashed for each window: with 65,536 a window takes five times as long
DIGEST_BYTES = 8  # of a block's sha256: the digests take 1/512 of the tokens' space
SUMS = "SHA256SUMS"  # as the program sha256sum writes and checks it
_IN_SUMS = ("meta.json", "tokenizer.json", "tokenizer_config.json", "train.sha256", "val.sha256")


class Meta(Section):
    """What a folder of token files was made from; meta.json."""

    format_version: Literal[2] = 2
    corpus: str = Field(description="The corpus as the config named it.")
    corpus_digest: str = Field(description="sha256 over the documents.")
    tokenizer: str = Field(description="Kind of the tokenizer.")
    tokenizer_digest: str = Field(description="sha256 of the tokenizer.")
    vocab_size: int = Field(ge=1, description="Every id is below it.")
    dtype: Literal["uint16", "uint32"] = Field(description="Number format of an id, little-endian.")
    documents: int = Field(ge=1, description="Documents in the corpus.")
    train_bytes: int = Field(ge=0, description="Bytes of text in the training split.")
    val_bytes: int = Field(ge=0, description="Bytes of text in the validation split.")
    repeated_bytes: int = Field(ge=0, description="Left out of validation, as training has the paragraphs.")
    train_tokens: int = Field(ge=0, description="Ids in train.bin.")
    val_tokens: int = Field(ge=0, description="Ids in val.bin.")
    first_token: int | None = Field(
        None,
        ge=0,
        description="First id of train.bin where no end of text stands in it: texts start from it.",
    )
    python_version: str | None = Field(None, description="For python-docs, whose text differs by version.")


class TokenFile:
    """A .bin file as a stream of ids (N,): `len(stream)`, and `stream[start:stop]` as a read-only array.

    Each slice is read from the file and compared with its digests; DamagedError names the block that differs.
    Nothing is mapped into memory, where a file that is cut short would end the process by a signal.
    """

    def __init__(self, path: Path, dtype: np.dtype, tokens: int) -> None:
        self._path, self._dtype, self._tokens = path, dtype, tokens
        self._digests = path.with_suffix(".sha256").read_bytes()
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._file)
        if (size := os.fstat(self._file).st_size) != tokens * dtype.itemsize:
            raise DamagedError(f"{path}: holds {size:,} bytes, not {tokens:,} tokens")

    def __len__(self) -> int:
        return self._tokens

    def __getitem__(self, window: slice, /) -> np.ndarray:
        start, stop, step = window.indices(len(self))
        assert step == 1
        start, stop = start * self._dtype.itemsize, max(start, stop) * self._dtype.itemsize  # in bytes
        # a digest is of a whole block, so all blocks that hold some of the window are read
        first, last = start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)
        advice = ": the next command prepares the text again"
        data = b"".join(self._read_block(i, advice) for i in range(first, last))
        return np.frombuffer(data[start - first * BLOCK_BYTES :][: stop - start], self._dtype)

    def verify(self) -> None:
        """Compare the whole file with its digests, as a slice is."""
        for i in range(-(-self._tokens * self._dtype.itemsize // BLOCK_BYTES)):
            self._read_block(i)

    def _read_block(self, i: int, advice: str = "") -> bytes:
        start = i * BLOCK_BYTES
        try:
            if sys.platform == "win32":  # which has no pread
                os.lseek(self._file, start, os.SEEK_SET)
                block = os.read(self._file, BLOCK_BYTES)
            else:
                block = os.pread(self._file, BLOCK_BYTES, start)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        if _digests(block) != self._digests[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES]:
            raise DamagedError(
                f"{self._path}: damaged: block {i:,}, from byte {start:,} on, is not what was written{advice}"
            )
        return block


TokenStream: TypeAlias = np.ndarray | TokenFile


@dataclass(frozen=True)
class TokenData:
    """A tokenized corpus: two read-only streams of ids (N,), and the tokenizer that made them."""

    train: TokenStream
    val: TokenStream
    tokenizer: Tokenizer
    meta: Meta

    @property
    def digest(self) -> str:
        """Equal exactly where both streams are: text, split and tokenizer decide it."""
        return tokens_digest(self.meta.corpus_digest, self.meta.tokenizer_digest, self.meta.train_bytes)


def tokens_digest(corpus_digest: str, tokenizer_digest: str, train_bytes: int) -> str:
    """The digest of tokens, from what they are made of."""
    return sha256(f"{corpus_digest} {tokenizer_digest} {train_bytes}".encode()).hexdigest()


def open_token_files(folder: Path) -> TokenData:
    """The token files in a folder, compared with their digests.

    Raises DamagedError where files are missing or not what was written, another OSError where reading fails.
    """
    try:
        written = (folder / SUMS).read_bytes().splitlines()
        for i, name in enumerate(_IN_SUMS):
            if written[i : i + 1] != [_sum_of(folder / name)]:
                raise DamagedError(f"{folder / name}: damaged: it does not agree with {SUMS}")
        meta = validate(Meta, json.loads((folder / "meta.json").read_bytes()), "meta.json")
        dtype = np.dtype(meta.dtype).newbyteorder("<")
        train = TokenFile(folder / "train.bin", dtype, meta.train_tokens)
        val = TokenFile(folder / "val.bin", dtype, meta.val_tokens)
        train.verify()
        val.verify()
        # ids mean nothing without the tokenizer that made them, so the two are kept together
        tokenizer = Tokenizer.load(folder)
    except FileNotFoundError as error:
        raise DamagedError(f"{error.filename}: damaged: it is missing") from None
    except ValueError as error:  # or whole, but not of this version
        raise DamagedError(f"{folder}: damaged: {error}") from None
    tokenizer.first_token = meta.first_token
    return TokenData(train, val, tokenizer, meta)


def create_token_file(path: Path, ids: Iterable[bytes]) -> None:
    """Write a new .bin file, and beside it the digests of its blocks."""
    digests = bytearray()

    def digested() -> Iterator[bytes]:
        rest = b""  # of a block that the next piece continues
        for piece in ids:
            rest += piece
            whole = len(rest) - len(rest) % BLOCK_BYTES
            digests.extend(_digests(rest[:whole]))
            rest = rest[whole:]
            yield piece
        digests.extend(_digests(rest))

    atomic_io.create_file(path, digested())
    atomic_io.create_file(path.with_suffix(".sha256"), digests)


def _digests(data: bytes) -> bytes:
    """The digests of data's blocks, one after another."""
    blocks = (data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES))
    return b"".join(sha256(block).digest()[:DIGEST_BYTES] for block in blocks)


def create_sums(folder: Path) -> None:
    """Write SHA256SUMS, which makes a folder of token files complete."""
    atomic_io.create_file(folder / SUMS, b"".join(_sum_of(folder / name) + b"\n" for name in _IN_SUMS))


def _sum_of(path: Path) -> bytes:
    """The file's line in SHA256SUMS."""
    return f"{sha256(path.read_bytes()).hexdigest()}  {path.name}".encode()
