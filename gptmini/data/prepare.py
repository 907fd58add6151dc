"""Text to tokens: a corpus becomes token files once, in bounded memory and on all cores.

Nothing here imports torch.
"""

import itertools
import os
import platform
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from gptmini import atomic_io
from gptmini.config import DataConfig, TokenizerConfig
from gptmini.data import token_cache
from gptmini.data.corpus import Chunk, Contents, Corpus, character_boundary, open_corpus
from gptmini.data.datasets import needs_download
from gptmini.data.dedup import ParagraphDeduplicator
from gptmini.data.documents import STANDARD_INPUT
from gptmini.data.python_docs import PYTHON_DOCS
from gptmini.data.token_files import (
    Meta,
    TokenData,
    create_sums,
    create_token_file,
    open_token_files,
    tokens_digest,
)
from gptmini.data.tokenizers import Tokenizer, build_tokenizer
from gptmini.data.tokenizers.corpus_encoder import CorpusEncoder
from gptmini.errors import UserError

BATCH_BYTES = 1 << 18  # of text that one thread encodes at a time


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig | Tokenizer,
    context_length: int,
    quiet: bool = False,
    trained_on: str | None = None,
) -> TokenData:
    """The corpus of `data` as tokens, made now or found in the cache folder.

    The validation split is `val_corpus`, or else the last `val_fraction` of the text: whole documents where
    one ends near that place, otherwise cut between two characters. Raises UserError where a split is shorter
    than one window of context_length + 1 tokens, or where text and split are not those of the run whose
    tokens have the digest `trained_on`.
    """
    return prepare_corpus(*_open(data), tokenizer, context_length, quiet, trained_on)


def _open(data: DataConfig) -> tuple[Corpus, float | Corpus]:
    """The corpus, and what is kept for validation: a fraction of it, or another one."""
    corpus = open_corpus(data.corpus, data.text_field, data.errors)
    if data.val_corpus is None:
        return corpus, data.val_fraction
    return corpus, open_corpus(data.val_corpus, data.text_field, data.errors, key="data.val_corpus")


def prepare_corpus(
    corpus: Corpus,
    validation: float | Corpus,
    tokenizer: TokenizerConfig | Tokenizer,
    context_length: int,
    quiet: bool = False,
    trained_on: str | None = None,
) -> TokenData:
    """A corpus as tokens; `validation` is the fraction at its end that is kept for it, or another corpus.

    If the validation text is whole documents, paragraphs that the training text contains are left out of it.
    Processes that prepare the same text wait for the first of them.
    """
    # where validation begins comes first, as bpe learns from the training text alone
    split = _split(corpus, validation)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = _find_or_build_tokenizer(tokenizer, split, quiet)
    if trained_on is not None:  # before another text is encoded, with a tokenizer that may not know it
        digest = tokens_digest(split.digest, tokenizer.digest, split.train_bytes)
        require_same_text(digest, trained_on, split.corpus.name)

    # text, split and tokenizer name the folder; its tokens are written only if they are not there yet
    folder = token_cache.tokens_folder(split.digest, split.train_bytes, tokenizer)
    write = partial(_write, folder, split, tokenizer, quiet)
    found = token_cache.find_or_make(folder, open_token_files, write, quiet)
    # the same text may have had another name when it was written
    found = replace(found, meta=found.meta.model_copy(update={"corpus": split.corpus.name}))

    # both splits must fill a window: context_length inputs and one more token for the last target
    val_corpus, advice = corpus, " or another data.val_fraction"
    if isinstance(validation, Corpus):
        val_corpus, advice = validation, ""
    for name, tokens, source in (("training", found.train, corpus), ("validation", found.val, val_corpus)):
        if len(tokens) < context_length + 1:
            repeated = found.meta.repeated_bytes if name == "validation" else 0
            left_out = f" ({repeated:,} bytes that also occur in the training text were left out)"
            raise UserError(
                f"{source.key} = {source.name}: the {name} split has {len(tokens):,} tokens"
                f"{left_out if repeated else ''}, but one window needs model.context_length + 1 = "
                f"{context_length + 1:,}; use more text or a shorter model.context_length{advice}"
            )
    return found


def _find_or_build_tokenizer(config: TokenizerConfig, split: "_Split", quiet: bool) -> Tokenizer:
    """A tokenizer is built once for a text. GPT-2's is saved too, so it needs the network only once."""
    folder = token_cache.tokenizer_folder(config, split.digest, split.train_bytes)
    if folder is None:
        return build_tokenizer(config, split.corpus)

    def make() -> None:
        token_cache.save_tokenizer(folder, build_tokenizer(config, split.corpus, split.train_bytes))

    return token_cache.find_or_make(folder, token_cache.open_tokenizer, make, quiet)


def find_prepared(
    data: DataConfig, tokenizer: TokenizerConfig | Tokenizer, trained_on: str | None = None
) -> TokenData | None:
    """What `prepare` has made of this corpus before; nothing is tokenized, downloaded or written.

    None where there is nothing, or not what a run was `trained_on`. The text is read once for its digest, as
    it may have changed. Standard input is not read. Raises DamagedError where the files are not what was
    written.
    """
    names = corpus_names(data)
    if STANDARD_INPUT in names or any(map(needs_download, names)):
        return None
    try:
        split = _split(*_open(data))
        if not isinstance(tokenizer, Tokenizer):
            folder = token_cache.tokenizer_folder(tokenizer, split.digest, split.train_bytes)
            if folder is None:
                tokenizer = build_tokenizer(tokenizer, split.corpus)
            elif folder.exists():
                tokenizer = token_cache.open_tokenizer(folder)
            else:
                return None
    except UserError:  # no such text, or no such folder of a tokenizer
        return None
    folder = token_cache.tokens_folder(split.digest, split.train_bytes, tokenizer)
    found = open_token_files(folder) if folder.exists() else None
    return None if found and trained_on not in (None, found.digest) else found


def corpus_names(data: DataConfig) -> list[str]:
    """All that stands in data.corpus and data.val_corpus, in order."""
    corpora = (data.corpus, data.val_corpus or ())
    return [name for corpus in corpora for name in ((corpus,) if isinstance(corpus, str) else corpus)]


def require_same_text(digest: str, trained_on: str, corpus: str) -> None:
    """The rule for all that read a run's text after it: resume, evaluate, report.

    Raises UserError where the digest of its tokens is not that of the tokens that the run was `trained_on`.
    """
    if digest != trained_on:
        version = f" (python-docs is that of Python {platform.python_version()} here)"
        raise UserError(
            f"data.corpus = {corpus}: text or split are not what the run was started with"
            f"{version if PYTHON_DOCS in corpus else ''}; put the old text back, or start a run on this "
            "one by train.init_from"
        )


def encode_corpus(corpus: Corpus, tokenizer: Tokenizer) -> np.ndarray:
    """A whole corpus as ids in memory, uint32 (N,), with the end-of-text token between documents."""
    dtype = np.dtype("<u4")
    return np.frombuffer(b"".join(_encode(tokenizer, corpus.chunks(), dtype)), dtype)


class _Split(NamedTuple):
    """A corpus whose first `train_bytes` bytes are for training, and the rest for validation."""

    corpus: Corpus
    train_bytes: int
    between_documents: bool  # or else in the middle of one

    @property
    def digest(self) -> str:
        return self.corpus.contents.digest

    def divide(self, chunk: Chunk, start: int) -> list[tuple[str, Chunk]]:
        """The chunk at byte `start` of the corpus, with its split; across the border it is two documents."""
        if start + len(chunk.data) <= self.train_bytes:
            return [("train", chunk)]
        if start >= self.train_bytes:
            return [("val", chunk)]
        cut = character_boundary(chunk.data, self.train_bytes - start)
        last = chunk._replace(data=chunk.data[:cut], ends_document=True)
        return [("train", last), ("val", chunk._replace(data=chunk.data[cut:], offset=chunk.offset + cut))]


def _split(corpus: Corpus, validation: float | Corpus) -> _Split:
    """Where validation begins: at another corpus, or near a fraction of the bytes."""
    contents = corpus.contents
    total = contents.total_bytes
    if isinstance(validation, Corpus):
        both = replace(
            corpus,
            name=f"{corpus.name}, validation: {validation.name}",
            sources=corpus.sources + validation.sources,
            python_version=corpus.python_version or validation.python_version,
        )
        return _Split(both, train_bytes=total, between_documents=True)
    boundary = int(total * (1 - validation))
    # prefer the end of a document, if the nearest is within half a validation split
    ends = np.cumsum(contents.document_bytes)[:-1]
    if len(ends):
        nearest = int(ends[np.abs(ends - boundary).argmin()])
        if abs(nearest - boundary) <= validation * total / 2:
            return _Split(corpus, nearest, between_documents=True)
    return _Split(corpus, boundary, between_documents=False)


def _write(folder: Path, split: _Split, tokenizer: Tokenizer, quiet: bool) -> None:
    """Encode both splits into a new folder of token files, in one pass over the text."""
    contents = split.corpus.contents
    # two bytes an id where the vocabulary allows, as for GPT-2's 50,257 tokens
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    read_again, paragraphs = Contents(), ParagraphDeduplicator()
    sizes, tokens = Counter[str](), Counter[str]()  # of each split
    hide_bar = quiet or not sys.stderr.isatty()
    bar = tqdm(total=contents.total_bytes, unit="B", unit_scale=True, desc="tokenizing", disable=hide_bar)

    def read() -> Iterator[tuple[str, Chunk]]:
        for chunk in split.corpus.chunks():
            read_again.add(chunk)
            for name, part in split.divide(chunk, start=sizes.total()):
                sizes[name] += len(part.data)
                yield name, part
            bar.update(len(chunk.data))

    with bar, atomic_io.new_folder(folder) as new:
        tokenizer.save(new)
        # all of train comes before all of val, so there are two groups at most
        for name, pairs in itertools.groupby(read(), key=lambda pair: pair[0]):
            chunks: Iterable[Chunk] = (chunk for _, chunk in pairs)
            if split.between_documents:
                chunks = paragraphs.remember(chunks) if name == "train" else paragraphs.drop(chunks)
            path = new / f"{name}.bin"
            create_token_file(path, _encode(tokenizer, chunks, dtype))
            tokens[name] = path.stat().st_size // dtype.itemsize
        for name in {"train", "val"} - tokens.keys():
            create_token_file(new / f"{name}.bin", ())
        # the end of text stands between documents: with one of them it is never trained
        one_document, first_token = contents.document_bytes[0] >= split.train_bytes, None
        if tokens["train"] and (one_document or tokenizer.end_of_text is None):
            with open(new / "train.bin", "rb") as file:  # np.fromfile takes a failed read for the end
                first_token = int.from_bytes(file.read(dtype.itemsize), "little")
        # the entry is named by the digest of the first pass
        if read_again.digest != contents.digest:
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
            first_token=first_token,
            python_version=split.corpus.python_version,
        )
        atomic_io.create_file(new / "meta.json", meta.model_dump_json(indent=2).encode())
        create_sums(new)


def _encode(tokenizer: Tokenizer, chunks: Iterable[Chunk], dtype: np.dtype) -> Iterator[bytes]:
    """The ids of chunks as bytes, with the end of text between documents; on all cores, in order.

    Threads are enough, as tiktoken releases Python's lock while it works. Two for each core, so that one
    works while the other waits for the lock.
    """
    waiting: deque[Future[bytes]] = deque()
    workers = 2 * (os.cpu_count() or 1)
    encoder = CorpusEncoder(tokenizer)

    def encode(batch: list[Chunk]) -> bytes:
        return encoder.encode_chunks(batch).astype(dtype).tobytes()

    with ThreadPoolExecutor(workers) as threads:
        for batch in _batches(chunks):
            waiting.append(threads.submit(encode, batch))
            if len(waiting) > workers:  # read no further ahead than the threads can use
                yield waiting.popleft().result()
        while waiting:
            ids = waiting.popleft().result()
            # encode_chunks ends every document with the end of text; the last one needs none
            ends_corpus = not waiting and tokenizer.end_of_text is not None
            yield ids[: -dtype.itemsize] if ends_corpus else ids


def _batches(chunks: Iterable[Chunk]) -> Iterator[list[Chunk]]:
    """Chunks in groups of about BATCH_BYTES, so that threads do not switch at every short document."""
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
