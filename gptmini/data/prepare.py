"""A corpus as a memory-mapped stream of tokens.

`prepare` turns text into `train.bin` and `val.bin` once, in bounded memory and on all cores, and finds them
again by the digests of text and tokenizer. Nothing here imports torch.
"""

import hashlib
import itertools
import json
import mmap
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, ValidationError
from tqdm import tqdm

from gptmini import atomic_io
from gptmini.config import DataConfig, TokenizerConfig
from gptmini.data.corpus import Chunk, Corpus, Fingerprint, character_boundary, open_corpus
from gptmini.data.datasets import NAMED, cache_folder, is_downloaded
from gptmini.data.dedup import ParagraphDeduplicator
from gptmini.data.documents import STANDARD_INPUT
from gptmini.data.tokenizers import Tokenizer, build_tokenizer, load_tokenizer
from gptmini.errors import DamagedError, InUseError, UserError
from gptmini.schema import Section

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 2
BATCH_BYTES = 1 << 18  # of text for one thread at a time
Side = Literal["train", "val"]
_META, _DIGEST = "meta.json", "digest"


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
    """A tokenized corpus: two read-only streams of ids, and the tokenizer that made them."""

    train: np.ndarray
    val: np.ndarray
    tokenizer: Tokenizer
    meta: Meta

    @property
    def digest(self) -> str:
        """Equal exactly where both streams are: text, split and tokenizer decide it."""
        parts = (self.meta.corpus_digest, self.meta.tokenizer_digest, str(self.meta.train_bytes))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def count_bytes(self, tokens: "Tensor") -> int:
        """How many bytes of text the ids stand for."""
        return count_bytes(self.tokenizer, tokens)


def count_bytes(tokenizer: Tokenizer, tokens: "Tensor") -> int:
    """How many bytes of text the ids stand for."""
    return int(tokenizer.token_byte_lengths[tokens.numpy()].sum())


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig | Tokenizer,
    context_length: int,
    quiet: bool = False,
) -> TokenData:
    """The corpus of `data` as tokens, made now or found in the cache folder.

    The validation split is `val_corpus`, or else the last `val_fraction` of the text: whole documents where
    one ends near that place, otherwise cut between two characters. Raises UserError where a split is shorter
    than one window of context_length + 1 tokens.
    """
    return prepare_corpus(*_open(data), tokenizer, context_length, quiet)


def _open(data: DataConfig) -> tuple[Corpus, float | Corpus]:
    """The corpus, and what is kept for validation: a fraction of it, or another one."""
    corpus = open_corpus(data.corpus, data.text_field, data.errors)
    if data.val_corpus is None:
        return corpus, data.val_fraction
    return corpus, open_corpus(data.val_corpus, data.text_field, data.errors, key="data.val_corpus")


def find_prepared(data: DataConfig, tokenizer: TokenizerConfig) -> TokenData | None:
    """What `prepare` has made of this corpus before, or None; nothing is tokenized or downloaded for it.

    The text is read once, as its digest tells whether it is still the same; standard input is left alone.
    """
    for corpus in filter(None, (data.corpus, data.val_corpus)):
        for entry in (corpus,) if isinstance(corpus, str) else corpus:
            if entry == STANDARD_INPUT or (entry in NAMED and not is_downloaded(entry)):
                return None
    try:
        split = _find_split(*_open(data))
        saved = _tokenizer_entry(tokenizer, split)
        found = build_tokenizer(tokenizer, split.corpus) if saved is None else _read_saved(saved)
    except UserError:  # no such text, or no such folder of a tokenizer
        return None
    return None if found is None else _open_tokens(_tokens_entry(split, found))


def prepare_corpus(
    corpus: Corpus,
    validation: float | Corpus,
    tokenizer: TokenizerConfig | Tokenizer,
    context_length: int,
    quiet: bool = False,
) -> TokenData:
    """A corpus as tokens; `validation` is the fraction at its end that is kept for it, or another corpus.

    Where the validation text is made of whole documents, the paragraphs that also stand in the training text
    are left out of it. Processes that prepare the same text wait for the first of them.
    """
    split = _find_split(corpus, validation)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = _find_or_build_tokenizer(tokenizer, split, quiet)
    folder = _tokens_entry(split, tokenizer)
    with exclusive(folder, quiet):
        found = _open_tokens(folder)
        if found is None:
            _write(folder / "tokens", split, tokenizer, quiet)
            found = _open_tokens(folder)
            assert found is not None, "just written"
    for name, tokens in (("training", found.train), ("validation", found.val)):
        if len(tokens) < context_length + 1:
            repeated = found.meta.repeated_bytes if name == "validation" else 0
            left_out = f" ({repeated:,} bytes that also stand in the training text were left out)"
            raise UserError(
                f"data.corpus = {corpus.name}: the {name} split has {len(tokens):,} tokens"
                f"{left_out if repeated else ''}, but one window needs model.context_length + 1 = "
                f"{context_length + 1:,}; use more text, a shorter model.context_length or another "
                "data.val_fraction"
            )
    return found


def encode_corpus(corpus: Corpus, tokenizer: Tokenizer) -> np.ndarray:
    """A whole corpus as ids in memory, uint32 (N,), with the end-of-text token between documents."""
    dtype = np.dtype("<u4")
    return np.frombuffer(b"".join(_encode(tokenizer, corpus.chunks(), dtype)), dtype)


@dataclass(frozen=True)
class _Split:
    """A corpus whose first bytes are for training, and the others for validation."""

    corpus: Corpus
    train_bytes: int
    between_documents: bool


def _find_split(corpus: Corpus, validation: float | Corpus) -> _Split:
    """The end of the document nearest to the place that the fraction names, if near, or else that place."""
    contents = corpus.contents
    total = contents.total_bytes
    if isinstance(validation, Corpus):
        return _Split(
            Corpus(
                f"{corpus.name}, validation: {validation.name}",
                corpus.sources + validation.sources,
                corpus.errors,
                corpus.python_version or validation.python_version,
            ),
            train_bytes=total,
            between_documents=True,
        )
    place = int(total * (1 - validation))
    ends = np.cumsum(contents.document_bytes)[:-1]
    if len(ends):
        nearest = int(ends[np.abs(ends - place).argmin()])
        if abs(nearest - place) <= validation * total / 2:
            return _Split(corpus, nearest, between_documents=True)
    return _Split(corpus, place, between_documents=False)


def _sides(chunks: Iterable[Chunk], train_bytes: int) -> Iterator[tuple[Side, Chunk]]:
    """The chunks, each with the side it is on; one across the border becomes two documents."""
    position = 0
    for chunk in chunks:
        start, position = position, position + len(chunk.data)
        if position <= train_bytes:
            yield "train", chunk
        elif start >= train_bytes:
            yield "val", chunk
        else:
            cut = character_boundary(chunk.data, train_bytes - start)
            yield "train", chunk._replace(data=chunk.data[:cut], ends_document=True)
            yield "val", chunk._replace(data=chunk.data[cut:], offset=chunk.offset + cut)


def _find_or_build_tokenizer(config: TokenizerConfig, split: _Split, quiet: bool) -> Tokenizer:
    """A tokenizer is built once for a text; GPT-2's once at all, and then no network is needed.

    What is found again counts only if its digest is the one it was saved with.
    """
    folder = _tokenizer_entry(config, split)
    if folder is None:
        return build_tokenizer(config, split.corpus)
    with exclusive(folder, quiet):
        files = folder / "tokenizer"
        found = _read_saved(folder)
        if found is None:
            if files.exists():
                atomic_io.remove_folder(files)
            found = build_tokenizer(config, split.corpus, split.train_bytes)
            with atomic_io.new_folder(files) as new:
                for name, data in found.files().items():
                    atomic_io.create_file(new / name, data)
                atomic_io.create_file(new / _DIGEST, found.digest.encode())
    return found


def _tokenizer_entry(config: TokenizerConfig, split: _Split) -> Path | None:
    """Where the tokenizer of a text is kept; None where it is read from a folder of the user's each time."""
    if config.folder is not None:
        return None
    learned_from = {
        "chars": (split.corpus.contents.digest,),
        "bpe": (split.corpus.contents.digest, split.train_bytes),
    }.get(config.kind, ())
    return _cache_entry("tokenizers", config.model_dump_json(), *learned_from)


def _read_saved(folder: Path) -> Tokenizer | None:
    """The tokenizer in an entry of the cache, if it is there and undamaged."""
    files = folder / "tokenizer"
    try:
        found = load_tokenizer(files)
        saved_digest = (files / _DIGEST).read_text(encoding="ascii")
    except (OSError, UserError, UnicodeDecodeError):  # DamagedError is an OSError
        return None
    return found if found is not None and found.digest == saved_digest else None


def _tokens_entry(split: _Split, tokenizer: Tokenizer) -> Path:
    """Where the tokens of a text are kept."""
    return _cache_entry("tokens", split.corpus.contents.digest, split.train_bytes, tokenizer.digest)


def _write(folder: Path, split: _Split, tokenizer: Tokenizer, quiet: bool) -> None:
    """Make the folder of token files."""
    contents = split.corpus.contents
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    passing, paragraphs = Fingerprint(), ParagraphDeduplicator()
    sizes: dict[Side, int] = {"train": 0, "val": 0}
    tokens: dict[Side, int] = {"train": 0, "val": 0}
    bar = tqdm(
        total=contents.total_bytes,
        unit="B",
        unit_scale=True,
        desc="tokenizing",
        disable=quiet or not sys.stderr.isatty(),
    )

    def read() -> Iterator[Chunk]:
        for chunk in split.corpus.chunks():
            passing.update(chunk)
            yield chunk
            bar.update(len(chunk.data))

    def on_one_side(pairs: Iterable[tuple[Side, Chunk]]) -> Iterator[Chunk]:
        for side, chunk in pairs:
            sizes[side] += len(chunk.data)
            yield chunk

    with bar, atomic_io.new_folder(folder) as new:
        for name, data in tokenizer.files().items():
            atomic_io.create_file(new / name, data)
        for side, pairs in itertools.groupby(_sides(read(), split.train_bytes), key=lambda pair: pair[0]):
            chunks = on_one_side(pairs)
            if split.between_documents:
                chunks = paragraphs.remember(chunks) if side == "train" else paragraphs.drop(chunks)
            path = new / f"{side}.bin"
            atomic_io.create_file(path, _encode(tokenizer, chunks, dtype))
            tokens[side] = path.stat().st_size // dtype.itemsize
        if passing.contents().digest != contents.digest:
            raise UserError(f"data.corpus = {split.corpus.name}: changed while it was read; try again")
        meta = Meta(
            corpus=split.corpus.name,
            corpus_digest=contents.digest,
            tokenizer=tokenizer.kind,
            tokenizer_digest=tokenizer.digest,
            vocab_size=tokenizer.vocab_size,
            dtype="uint16" if dtype.itemsize == 2 else "uint32",
            documents=len(contents.document_bytes),
            train_bytes=sizes["train"],
            val_bytes=sizes["val"] - paragraphs.dropped_bytes,
            repeated_bytes=paragraphs.dropped_bytes,
            train_tokens=tokens["train"],
            val_tokens=tokens["val"],
            python_version=split.corpus.python_version,
        )
        atomic_io.create_file(new / _META, meta.model_dump_json(indent=2).encode())


def _encode(tokenizer: Tokenizer, chunks: Iterable[Chunk], dtype: np.dtype) -> Iterator[bytes]:
    """The ids of chunks as bytes, with the end of text between documents; two threads for each core help.

    tiktoken lets other threads run while it works. While one of the two waits for its turn in Python, the
    other keeps the core busy.
    """
    waiting: deque[Future[bytes]] = deque()
    last = b""
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(2 * cores) as threads:
        for batch in _batches(chunks):
            waiting.append(threads.submit(_encode_batch, tokenizer, batch, dtype))
            if len(waiting) > 2 * cores:
                yield last
                last = waiting.popleft().result()
        while waiting:
            yield last
            last = waiting.popleft().result()
    yield last if tokenizer.end_of_text is None else last[: -dtype.itemsize]  # none behind the last document


def _encode_batch(tokenizer: Tokenizer, batch: list[Chunk], dtype: np.dtype) -> bytes:
    """The ids of chunks, with the end of text behind each document."""
    return tokenizer.encode_chunks(batch).astype(dtype).tobytes()


def _batches(chunks: Iterable[Chunk]) -> Iterator[list[Chunk]]:
    """Short documents together, so that a batch is worth a thread's while."""
    batch: list[Chunk] = []
    size = 0
    for chunk in chunks:
        batch.append(chunk)
        size += len(chunk.data)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _cache_entry(kind: str, *made_from: str | int) -> Path:
    """The folder in the cache for what is made from these values in this version of the format."""
    key = hashlib.sha256(json.dumps([FORMAT_VERSION, *made_from]).encode()).hexdigest()[:32]
    return cache_folder() / kind / key


@contextmanager
def exclusive(folder: Path, quiet: bool) -> Iterator[None]:
    """Wait until no other process works on this entry of the cache; clear away what a killed one left."""
    atomic_io.make_folder(folder)
    with ExitStack() as stack:
        for attempt in itertools.count():
            try:
                stack.enter_context(atomic_io.lock(folder / "lock", str(folder)))
                break
            except InUseError:
                if attempt == 0 and not quiet:
                    print("waiting for another process that prepares the same text", file=sys.stderr)
                time.sleep(0.1)
        atomic_io.clean_leftovers(folder)
        yield


def _open_tokens(entry: Path) -> TokenData | None:
    """The token files in an entry of the cache; a damaged folder is removed and, like a missing one, None."""
    folder = entry / "tokens"
    if not folder.exists():
        return None
    try:
        meta = Meta.model_validate_json((folder / _META).read_bytes())
        tokenizer = load_tokenizer(folder)
        if tokenizer is None or tokenizer.digest != meta.tokenizer_digest:
            raise DamagedError(f"{folder}: holds another tokenizer than meta.json says")
        train = _open_stream(folder / "train.bin", meta.dtype, meta.train_tokens)
        val = _open_stream(folder / "val.bin", meta.dtype, meta.val_tokens)
    except (OSError, UserError, ValidationError):  # DamagedError is an OSError
        atomic_io.remove_folder(folder)
        return None
    return TokenData(train, val, tokenizer, meta)


def release_pages(stream: np.ndarray) -> None:
    """Let go of the pages of a token file that have been read, so that a process does not grow by them.

    The operating system keeps them, as long as nobody else needs the memory.
    """
    mapped: object = stream.base
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _open_stream(path: Path, dtype: str, tokens: int) -> np.ndarray:
    """A token file, mapped rather than read: the operating system loads the pages that are used."""
    if tokens == 0:
        return np.empty(0, np.dtype(dtype))
    if path.stat().st_size != tokens * np.dtype(dtype).itemsize:
        raise DamagedError(f"{path}: holds {path.stat().st_size:,} bytes, not {tokens:,} tokens")
    stream: np.ndarray = np.memmap(path, np.dtype(dtype).newbyteorder("<"), mode="r")
    return stream
