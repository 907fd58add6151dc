"""Corpora with a name: one that every Python brings along, and some that are downloaded once.

A download is kept in the cache folder. It is used only if its sha256 is right, so a copy that was put there
by hand is as good.
"""

import hashlib
import os
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from gptmini.data.documents import BLOCK_BYTES, Document, read_documents, split_documents
from gptmini.data.python_docs import PYTHON_DOCS, read_python_docs
from gptmini.errors import UserError


@dataclass(frozen=True)
class NamedCorpus:
    """A corpus with a name: what it is, and the file to download for it, checked by its digest."""

    description: str
    licence: str
    url: str | None = None  # None: nothing to download
    file_name: str = ""  # in the cache folder
    sha256: str = ""
    size_bytes: int = 0
    other_names: tuple[str, ...] = ()  # under which a copy may lie in the cache folder already
    member: str | None = None  # of the zip file that is downloaded
    separator: bytes | None = None  # between documents


NAMED = {
    PYTHON_DOCS: NamedCorpus(
        "the running Python's help topics and library docstrings, about 2 MB; nothing to download",
        licence="PSF-2.0",
    ),
    "tiny-shakespeare": NamedCorpus(
        "scenes from Shakespeare's plays, as char-rnn used them",
        licence="public domain",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        file_name="tiny-shakespeare.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        size_bytes=1_115_394,
        other_names=("input.txt", "tinyshakespeare.txt"),
    ),
    "tiny-stories": NamedCorpus(
        "2 million short stories in a small child's words, written by GPT-3.5 and GPT-4",
        licence="CDLA-Sharing-1.0",
        url="https://huggingface.co/datasets/roneneldan/TinyStories/resolve/"
        "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/TinyStories-train.txt",
        file_name="TinyStories-train.txt",
        sha256="c5cf5e22ff13614e830afbe61a99fbcbe8bcb7dd72252b989fa1117a368d401f",
        size_bytes=1_924_281_556,
        separator=b"<|endoftext|>",
    ),
    "enwik8": NamedCorpus(
        "the first 100 million bytes of the English Wikipedia of 2006, as XML",
        licence="CC-BY-SA-3.0 and GFDL-1.2",
        url="https://mattmahoney.net/dc/enwik8.zip",
        file_name="enwik8.zip",
        sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        size_bytes=36_445_475,
        member="enwik8",
    ),
    "fineweb-edu": NamedCorpus(
        "educational web pages: the first of the 14 parquet files of the 10-billion-token sample",
        licence="ODC-By-1.0",
        url="https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu/resolve/"
        "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9/sample/10BT/000_00000.parquet",
        file_name="fineweb-edu-10BT-000.parquet",
        sha256="b1ba7b2ce4cb5ea6ef42dca40263eabb85f37700d01693a68e9b30a31d78e871",
        size_bytes=2_152_819_114,
        other_names=("000_00000.parquet",),
    ),
}


def open_named(name: str) -> Callable[[], Iterator[Document]]:
    """The function that reads a named corpus's documents; downloads it now if need be.

    Raises UserError with what to do when it cannot be had.
    """
    corpus = NAMED[name]
    if corpus.url is None:
        return read_python_docs
    path = _find(corpus) or _download(name, corpus, corpus.url)
    if corpus.member is not None:
        return partial(_read_zip, path, corpus.member)
    if corpus.separator is not None:
        return partial(split_documents, path, corpus.separator)
    return partial(read_documents, path, "text")


def is_downloaded(name: str) -> bool:
    """Whether a named corpus can be read without a download."""
    return NAMED[name].url is None or _find(NAMED[name]) is not None


def list_named() -> str:
    """A table of the named corpora: name, size of the download, licence and what it is."""
    rows = []
    for name, corpus in NAMED.items():
        megabytes = f"{corpus.size_bytes / 1e6:,.0f} MB" if corpus.url else "-"
        rows.append(f"{name:<18}{megabytes:>9}  {corpus.licence:<27}{corpus.description}")
    return "\n".join(rows)


def _read_zip(path: Path, member: str) -> Iterator[Document]:
    def blocks() -> Iterator[bytes]:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            while block := file.read(BLOCK_BYTES):
                yield block

    yield Document(f"{path}/{member}", blocks())


def cache_folder() -> Path:
    """Where downloads and token files are kept: GPTMINI_CACHE_DIR, or the user's cache folder."""
    if folder := os.environ.get("GPTMINI_CACHE_DIR"):
        return Path(folder)
    import pooch  # takes a moment to import, and most runs do not need it

    return Path(pooch.os_cache("gptmini"))


# ---------------------------------------------------------------------------------------- downloads


def _find(corpus: NamedCorpus) -> Path | None:
    """The file in the cache folder, under any of its names, if its digest is right."""
    import pooch

    paths = (cache_folder() / name for name in (corpus.file_name, *corpus.other_names))
    same_size = (path for path in paths if path.is_file() and path.stat().st_size == corpus.size_bytes)
    return next((path for path in same_size if pooch.file_hash(str(path)) == corpus.sha256), None)


def _download(name: str, corpus: NamedCorpus, url: str) -> Path:
    """The file, fetched into the cache folder."""
    import pooch

    folder = cache_folder()
    try:
        fetched = pooch.retrieve(
            url,
            known_hash=f"sha256:{corpus.sha256}",
            fname=corpus.file_name,
            path=folder,
            downloader=_fetch,
        )
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError is a wrong digest
        reason = textwrap.shorten(str(error), 120, placeholder=" ...")
        raise UserError(
            f"data.corpus = {name}: cannot be downloaded ({type(error).__name__}: {reason}); without a "
            f"network put {url} ({corpus.size_bytes:,} bytes, sha256 {corpus.sha256}) at "
            f"{folder / corpus.file_name}, or use {PYTHON_DOCS} or the path of a text of your own"
        ) from None
    return Path(fetched)


def _fetch(url: str, output_file: str, pooch: object) -> None:
    """Download to `output_file`, resuming where an earlier attempt broke off; pooch checks the digest."""
    import requests  # pooch brings it

    partial_file = Path(output_file).parent / (hashlib.sha256(url.encode()).hexdigest()[:16] + ".part")
    have = partial_file.stat().st_size if partial_file.exists() else 0
    # without compression, so that the byte range counts bytes of the file
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {}
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            partial_file.unlink()  # longer than the file there: not a part of it
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            have = 0  # the server sends all of it
        size = have + int(response.headers.get("Content-Length", 0)) or None
        hide_bar = not sys.stderr.isatty()
        with (
            open(partial_file, "ab" if have else "wb") as file,
            tqdm(total=size, initial=have, unit="B", unit_scale=True, disable=hide_bar) as bar,
        ):
            for block in response.iter_content(BLOCK_BYTES):
                file.write(block)
                bar.update(len(block))
    os.replace(partial_file, output_file)
