"""The tokens of a corpus on disk: a folder with train.bin, val.bin, meta.json and the tokenizer's files.

A .bin file is the ids one after another, uint16 or uint32 (little-endian), and nothing else. It is mapped
into memory, not read. Nothing here imports torch.
"""

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError

from gptmini.data.tokenizers import Tokenizer, load_tokenizer
from gptmini.errors import DamagedError
from gptmini.schema import Section


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
    python_version: str | None = Field(None, description="For python-docs, whose text differs by version.")


@dataclass(frozen=True)
class TokenData:
    """A tokenized corpus: two read-only streams of ids (N,), and the tokenizer that made them."""

    train: np.ndarray
    val: np.ndarray
    tokenizer: Tokenizer
    meta: Meta

    @property
    def digest(self) -> str:
        """Equal exactly where both streams are: text, split and tokenizer decide it."""
        parts = (self.meta.corpus_digest, self.meta.tokenizer_digest, str(self.meta.train_bytes))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def open_token_files(folder: Path) -> TokenData:
    """The token files in a folder. Raises DamagedError or another OSError where they are not whole."""
    try:
        meta = Meta.model_validate_json((folder / "meta.json").read_bytes())
    except ValidationError as error:
        raise DamagedError(f"{folder / 'meta.json'}: {error.errors()[0]['msg']}") from None
    # ids mean nothing without the tokenizer that made them, so the two are kept together
    tokenizer = load_tokenizer(folder)
    if tokenizer is None or tokenizer.digest != meta.tokenizer_digest:
        raise DamagedError(f"{folder}: holds another tokenizer than meta.json says")
    train = _map_ids(folder / "train.bin", meta.dtype, meta.train_tokens)
    val = _map_ids(folder / "val.bin", meta.dtype, meta.val_tokens)
    return TokenData(train, val, tokenizer, meta)


def _map_ids(path: Path, dtype: str, tokens: int) -> np.ndarray:
    """A token file as an array (tokens,): the operating system loads the pages that are used."""
    if tokens == 0:  # an empty file cannot be mapped
        return np.empty(0, np.dtype(dtype))
    if path.stat().st_size != tokens * np.dtype(dtype).itemsize:
        raise DamagedError(f"{path}: holds {path.stat().st_size:,} bytes, not {tokens:,} tokens")
    stream: np.ndarray = np.memmap(path, np.dtype(dtype).newbyteorder("<"), mode="r")
    return stream


def release_pages(stream: np.ndarray) -> None:
    """Unmap the pages of a token file that were read, so that the process does not grow by them.

    They stay in the operating system's page cache as long as memory lasts, so reading them again is cheap.
    """
    mapped: object = stream.base  # None for an array in memory
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
