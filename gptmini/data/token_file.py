"""The corpus as a memory-mapped stream of tokens, and batches as a function of the step.

`prepare` turns a corpus into `train.bin` and `val.bin` once, in bounded memory, and finds them again by the
digests of text and tokenizer. `Windows` says which windows of the training stream each step sees, computed
from (seed, step) alone: there is no state that a resumed run could get wrong.
"""

import errno
import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor
from tqdm import tqdm

from gptmini.checkpoint import durable
from gptmini.config import DataConfig, Section, TokenizerConfig
from gptmini.data.corpus import Chunk, Contents, Corpus, Fingerprint, character_boundary, open_corpus
from gptmini.data.named import cache_folder
from gptmini.data.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from gptmini.errors import DamagedError, UserError

if TYPE_CHECKING:
    from typing import Never

FORMAT_VERSION = 1
Split = Literal["train", "val"]
_META = "meta.json"


class Meta(Section):
    """What a folder of token files was made from; meta.json."""

    format_version: Literal[1] = 1
    corpus: str = Field(description="The corpus as the config named it.")
    corpus_digest: str = Field(description="sha256 over the documents.")
    tokenizer: str = Field(description="Kind of the tokenizer.")
    tokenizer_digest: str = Field(description="sha256 of the tokenizer.")
    vocab_size: int = Field(ge=1, description="Every id is below it.")
    dtype: Literal["uint16", "uint32"] = Field(description="Number format of an id, little-endian.")
    documents: int = Field(ge=1, description="Documents in the corpus.")
    train_bytes: int = Field(ge=0, description="Bytes of text in the training split.")
    val_bytes: int = Field(ge=0, description="Bytes of text in the validation split.")
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

    def count_bytes(self, tokens: Tensor) -> int:
        """How many bytes of text the ids stand for."""
        return count_bytes(self.tokenizer, tokens)


def count_bytes(tokenizer: Tokenizer, tokens: Tensor) -> int:
    """How many bytes of text the ids stand for."""
    return int(tokenizer.token_byte_lengths[tokens.numpy()].sum())


# ---------------------------------------------------------------------------------------- text -> tokens


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig | Tokenizer,
    context_length: int,
    quiet: bool = False,
) -> TokenData:
    """The corpus of `data` as tokens, made now or found in the cache folder.

    The validation split is the last `val_fraction` of the text: whole documents where one ends near that
    place, otherwise cut between two characters. Raises UserError where a split is shorter than one window of
    context_length + 1 tokens.
    """
    corpus = open_corpus(data.corpus)
    contents = corpus.contents
    train_bytes = _train_bytes(contents, data.val_fraction)
    wanted = tokenizer.digest if isinstance(tokenizer, Tokenizer) else tokenizer.model_dump_json()
    key = hashlib.sha256(json.dumps([FORMAT_VERSION, contents.digest, train_bytes, wanted]).encode())
    folder = cache_folder() / "tokens" / key.hexdigest()[:32]
    found = _open(folder)
    if found is None:
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = build_tokenizer(tokenizer, corpus, train_bytes)
        _write(folder, corpus, contents, train_bytes, tokenizer, quiet)
        found = _open(folder)
        assert found is not None, "just written"
    for split, tokens in (("training", found.train), ("validation", found.val)):
        if len(tokens) < context_length + 1:
            raise UserError(
                f"data.corpus = {corpus.name}: the {split} split has {len(tokens):,} tokens, but one window "
                f"needs model.context_length + 1 = {context_length + 1:,}; use more text, a shorter "
                "model.context_length or another data.val_fraction"
            )
    return found


def encode_corpus(corpus: Corpus, tokenizer: Tokenizer) -> np.ndarray:
    """A whole corpus as ids in memory, uint32 (N,), with the end-of-text token between documents."""
    return np.frombuffer(b"".join(_encode(corpus.chunks(), tokenizer, np.dtype("<u4"))), "<u4")


def _train_bytes(contents: Contents, val_fraction: float) -> int:
    """Where the validation split begins: at the document's end nearest to its place, if one is near."""
    total = contents.total_bytes
    place = int(total * (1 - val_fraction))
    ends = np.cumsum(contents.document_bytes)[:-1]
    if len(ends):
        nearest = int(ends[np.abs(ends - place).argmin()])
        if abs(nearest - place) <= val_fraction * total / 2:
            return nearest
    return place


def _split(chunks: Iterable[Chunk], train_bytes: int) -> Iterator[tuple[Split, Chunk]]:
    """A corpus's chunks, each with its split; the one that lies across the border is cut in two."""
    position = 0
    for chunk in chunks:
        data, start = chunk.data, position
        position += len(data)
        if position <= train_bytes:
            yield "train", chunk
        elif start >= train_bytes:
            yield "val", chunk
        else:
            cut = character_boundary(data, train_bytes - start)
            if cut:
                yield "train", Chunk(data[:cut], chunk.source, chunk.offset, ends_document=True)
            yield "val", Chunk(data[cut:], chunk.source, chunk.offset + cut, chunk.ends_document)


def _write(
    folder: Path, corpus: Corpus, contents: Contents, train_bytes: int, tokenizer: Tokenizer, quiet: bool
) -> None:
    """Make the folder of token files; one that another process made meanwhile is as good."""
    durable.make_folder(folder.parent)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    seen = Fingerprint()
    bar = tqdm(
        total=contents.total_bytes,
        unit="B",
        unit_scale=True,
        desc="tokenizing",
        disable=quiet or not sys.stderr.isatty(),
    )
    try:
        with bar, durable.new_folder(folder) as new:
            tokens = {"train": 0, "val": 0}
            watched = _watched(corpus.chunks(), seen, bar)
            for split, pairs in itertools.groupby(_split(watched, train_bytes), key=lambda pair: pair[0]):
                path = new / f"{split}.bin"
                durable.create_file(path, _encode((chunk for _, chunk in pairs), tokenizer, dtype))
                tokens[split] = path.stat().st_size // dtype.itemsize
            if seen.contents().digest != contents.digest:
                raise UserError(f"data.corpus = {corpus.name}: the text changed while it was read; try again")
            meta = Meta(
                corpus=corpus.name,
                corpus_digest=contents.digest,
                tokenizer=tokenizer.kind,
                tokenizer_digest=tokenizer.digest,
                vocab_size=tokenizer.vocab_size,
                dtype="uint16" if dtype.itemsize == 2 else "uint32",
                documents=len(contents.document_bytes),
                train_bytes=train_bytes,
                val_bytes=contents.total_bytes - train_bytes,
                train_tokens=tokens["train"],
                val_tokens=tokens["val"],
                python_version=corpus.python_version,
            )
            for name, data in tokenizer.files().items():
                durable.create_file(new / name, data)
            durable.create_file(new / _META, meta.model_dump_json(indent=2).encode())
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def _watched(chunks: Iterable[Chunk], seen: Fingerprint, bar: "tqdm[Never]") -> Iterator[Chunk]:
    for chunk in chunks:
        seen.update(chunk)
        yield chunk
        bar.update(len(chunk.data))


def _encode(chunks: Iterable[Chunk], tokenizer: Tokenizer, dtype: np.dtype) -> Iterator[bytes]:
    """The ids of one split as bytes, with the end-of-text token between documents."""
    between = False
    for chunk in chunks:
        if between:
            yield np.array([tokenizer.end_of_text], dtype).tobytes()
        yield tokenizer.encode_bytes(chunk.data, chunk.source, chunk.offset).astype(dtype).tobytes()
        between = chunk.ends_document


def _open(folder: Path) -> TokenData | None:
    """What lies in a folder of token files; a damaged one is removed and, like a missing one, None."""
    if not folder.exists():
        return None
    try:
        meta = Meta.model_validate_json((folder / _META).read_bytes())
        tokenizer = load_tokenizer(folder)
        if tokenizer is None or tokenizer.digest != meta.tokenizer_digest:
            raise DamagedError(f"{folder}: holds another tokenizer than meta.json says")
        train = _open_stream(folder / "train.bin", meta.dtype, meta.train_tokens)
        val = _open_stream(folder / "val.bin", meta.dtype, meta.val_tokens)
    except (OSError, ValidationError):  # DamagedError is an OSError
        durable.remove_folder(folder)
        return None
    return TokenData(train, val, tokenizer, meta)


def _open_stream(path: Path, dtype: str, tokens: int) -> np.ndarray:
    """A token file, mapped rather than read: the operating system loads the pages that are used."""
    if tokens == 0:
        return np.empty(0, np.dtype(dtype))
    if path.stat().st_size != tokens * np.dtype(dtype).itemsize:
        raise DamagedError(f"{path}: holds {path.stat().st_size:,} bytes, not {tokens:,} tokens")
    stream: np.ndarray = np.memmap(path, np.dtype(dtype).newbyteorder("<"), mode="r")
    return stream


# ---------------------------------------------------------------------------------------- tokens -> batches


class Windows:
    """Which windows of a token stream each training step sees: shuffled epochs without replacement.

    An epoch visits every window of context_length tokens once, in an order that depends on (seed, epoch)
    alone. The windows of each epoch begin at another offset, so that a text's tokens do not stand at the same
    positions each time. Nothing is stored, so memory does not grow with the corpus.
    """

    def __init__(self, tokens: np.ndarray, context_length: int, seed: int) -> None:
        """`tokens` (N,) must hold at least one window of context_length tokens and its last target."""
        assert len(tokens) > context_length
        self.tokens, self.context_length, self.seed = tokens, context_length, seed
        self.per_epoch = max(1, (len(tokens) - context_length) // context_length)

    def starts(self, step: int, batch_size: int) -> np.ndarray:
        """Where the windows of step 0, 1, ... begin in the stream, int64 (batch_size,)."""
        positions = step * batch_size + np.arange(batch_size)
        epochs = positions // self.per_epoch
        return np.concatenate(
            [
                self._in_epoch(epoch, positions[epochs == epoch] % self.per_epoch)
                for epoch in np.unique(epochs)
            ]
        )

    def _in_epoch(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Starts of the windows that come at these positions of an epoch's order."""
        slack = len(self.tokens) - 1 - self.per_epoch * self.context_length
        offset = _key(self.seed, int(epoch)) % min(self.context_length, slack + 1)
        return offset + self.context_length * permute(positions, self.per_epoch, (self.seed, int(epoch)))

    def batch(self, starts: np.ndarray) -> tuple[Tensor, Tensor]:
        """The windows at `starts`: inputs and targets, int64 (B, T), each target the token after its input.

        >>> windows = Windows(np.arange(10, 20), context_length=3, seed=0)
        >>> windows.batch(np.array([0, 4]))
        (tensor([[10, 11, 12],
                [14, 15, 16]]), tensor([[11, 12, 13],
                [15, 16, 17]]))
        """
        T = self.context_length
        windows = [torch.from_numpy(self.tokens[s : s + T + 1].astype(np.int64)) for s in starts]
        batch = torch.stack(windows)  # (B, T + 1): equally long rows under one another
        return batch[:, :-1], batch[:, 1:]


def permute(indices: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Where a fixed shuffle of `size` things, chosen by `key`, puts each of `indices`, int64 (n,).

    A Feistel network (Luby & Rackoff, 1988) shuffles the next power of four; an index that lands outside is
    sent on until it lands inside, which keeps it a permutation. So no permutation is ever stored.

    >>> sorted(permute(np.arange(10), 10, (1, 2)).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    rounds = [np.uint64(_key(*key, i)) for i in range(1, 5)]
    result = indices.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        left, right = result[outside] >> np.uint64(half_bits), result[outside] & mask
        for round_key in rounds:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        result[outside] = (left << np.uint64(half_bits)) | right
        outside = result >= size
    return result.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """A hash of each uint64: splitmix64's finalizer (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(*parts: int) -> int:
    """A 64-bit number that depends on all of `parts`."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def validation_batches(
    tokens: np.ndarray, context_length: int, batch_size: int, max_tokens: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """A full pass over a split in a fixed order: each token but the first is a target exactly once.

    Yields inputs and targets, int64 (B, T); the last, shorter window comes as a batch of its own.
    `max_tokens` ends the pass after about that many targets.
    """
    T = context_length
    targets = len(tokens) - 1 if max_tokens is None else min(max_tokens, len(tokens) - 1)
    windows = Windows(tokens, T, seed=0) if targets >= T else None
    full = targets // T
    for first in range(0, full, batch_size):
        assert windows is not None
        yield windows.batch(T * np.arange(first, min(first + batch_size, full)))
    if rest := targets % T:
        last = torch.from_numpy(tokens[full * T : full * T + rest + 1].astype(np.int64)).unsqueeze(0)
        yield last[:, :-1], last[:, 1:]
