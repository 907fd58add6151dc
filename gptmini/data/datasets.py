"""Corpora with a name: one that every Python brings along, and some that are downloaded once.

A downloaded file lies in the cache folder under its name and counts only if its sha256 is right, so a copy
that was put there by hand is as good.
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

from gptmini.data.documents import BLOCK_BYTES, Document, read_blocks, read_documents, split_documents
from gptmini.data.python_docs import PYTHON_DOCS, read_python_docs
from gptmini.errors import UserError


@dataclass(frozen=True)
class Download:
    """A file that is fetched once and checked by its digest."""

    file_name: str
    url: str
    sha256: str
    size_bytes: int
    other_names: tuple[str, ...] = ()  # under which a copy may lie in the cache folder already


@dataclass(frozen=True)
class NamedCorpus:
    """What there is to know of a corpus that has a name."""

    description: str
    licence: str
    download: Download | None = None
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
        download=Download(
            file_name="tiny-shakespeare.txt",
            url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            size_bytes=1_115_394,
            other_names=("input.txt", "tinyshakespeare.txt"),
        ),
    ),
    "tiny-stories": NamedCorpus(
        "2 million short stories in a small child's words, written by GPT-3.5 and GPT-4",
        licence="CDLA-Sharing-1.0",
        download=Download(
            file_name="TinyStories-train.txt",
            url="https://huggingface.co/datasets/roneneldan/TinyStories/resolve/"
            "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/TinyStories-train.txt",
            sha256="c5cf5e22ff13614e830afbe61a99fbcbe8bcb7dd72252b989fa1117a368d401f",
            size_bytes=1_924_281_556,
        ),
        separator=b"<|endoftext|>",
    ),
    "enwik8": NamedCorpus(
        "the first 100 million bytes of the English Wikipedia of 2006, as XML",
        licence="CC-BY-SA-3.0 and GFDL-1.2",
        download=Download(
            file_name="enwik8.zip",
            url="https://mattmahoney.net/dc/enwik8.zip",
            sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
            size_bytes=36_445_475,
        ),
        member="enwik8",
    ),
    "fineweb-edu": NamedCorpus(
        "educational web pages: the first of the 14 parquet files of the 10-billion-token sample",
        licence="ODC-By-1.0",
        download=Download(
            file_name="fineweb-edu-10BT-000.parquet",
            url="https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu/resolve/"
            "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9/sample/10BT/000_00000.parquet",
            sha256="b1ba7b2ce4cb5ea6ef42dca40263eabb85f37700d01693a68e9b30a31d78e871",
            size_bytes=2_152_819_114,
            other_names=("000_00000.parquet",),
        ),
    ),
}


def open_named(name: str) -> Callable[[], Iterator[Document]]:
    """Reads the documents of a named corpus, which is downloaded now if need be.

    Raises UserError with what to do when it cannot be had.
    """
    corpus = NAMED[name]
    if corpus.download is None:
        return read_python_docs
    path = _find(name, corpus.download)
    if corpus.member is not None:
        return partial(_read_zip, path, corpus.member)
    if corpus.separator is not None:
        return partial(_read_separated, path, corpus.separator)
    return partial(read_documents, path, "text")


def list_named() -> str:
    """A table of the named corpora: name, size of the download, licence and what it is."""
    rows = []
    for name, corpus in NAMED.items():
        megabytes = f"{corpus.download.size_bytes / 1e6:,.0f} MB" if corpus.download else "-"
        rows.append(f"{name:<18}{megabytes:>9}  {corpus.licence:<27}{corpus.description}")
    return "\n".join(rows)


def _read_zip(path: Path, member: str) -> Iterator[Document]:
    def blocks() -> Iterator[bytes]:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            while block := file.read(BLOCK_BYTES):
                yield block

    yield Document(f"{path}/{member}", blocks())


def _read_separated(path: Path, separator: bytes) -> Iterator[Document]:
    return split_documents(path, read_blocks(path), separator)


def cache_folder() -> Path:
    """Where downloads and token files are kept: GPTMINI_CACHE_DIR, or the user's cache folder."""
    if folder := os.environ.get("GPTMINI_CACHE_DIR"):
        return Path(folder)
    import pooch  # takes a moment to import, and most runs do not need it

    return Path(pooch.os_cache("gptmini"))


# ---------------------------------------------------------------------------------------- downloads


def is_downloaded(name: str) -> bool:
    """Whether a named corpus can be read without a download."""
    download = NAMED[name].download
    return download is None or _find_downloaded(download) is not None


def _find_downloaded(download: Download) -> Path | None:
    files = (cache_folder() / file_name for file_name in (download.file_name, *download.other_names))
    return next((file for file in files if _is_whole(file, download)), None)


def _find(name: str, download: Download) -> Path:
    """The file of a named corpus, in the cache folder or fetched into it."""
    folder = cache_folder()
    if (found := _find_downloaded(download)) is not None:
        return found
    import pooch

    try:
        fetched = pooch.retrieve(
            download.url,
            known_hash=f"sha256:{download.sha256}",
            fname=download.file_name,
            path=folder,
            downloader=_fetch,
        )
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError is a wrong digest
        reason = textwrap.shorten(str(error), 120, placeholder=" ...")
        raise UserError(
            f"data.corpus = {name}: cannot be downloaded ({type(error).__name__}: {reason}); without a "
            f"network put {download.url} ({download.size_bytes:,} bytes, sha256 {download.sha256}) at "
            f"{folder / download.file_name}, or use {PYTHON_DOCS} or the path of a text of your own"
        ) from None
    return Path(fetched)


def _fetch(url: str, output_file: str, pooch: object) -> None:
    """Download to `output_file`, going on where an attempt broke off; pooch checks the digest."""
    import requests  # pooch brings it

    partial_file = Path(output_file).parent / (hashlib.sha256(url.encode()).hexdigest()[:16] + ".part")
    have = partial_file.stat().st_size if partial_file.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {}
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            partial_file.unlink()  # longer than the file there: not a part of it
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            have = 0  # the server sends all of it
        size = have + int(response.headers.get("Content-Length", 0))
        with (
            open(partial_file, "ab" if have else "wb") as file,
            tqdm(
                total=size or None, initial=have, unit="B", unit_scale=True, disable=not sys.stderr.isatty()
            ) as bar,
        ):
            for block in response.iter_content(BLOCK_BYTES):
                file.write(block)
                bar.update(len(block))
    os.replace(partial_file, output_file)


def _is_whole(path: Path, download: Download) -> bool:
    if not path.is_file() or path.stat().st_size != download.size_bytes:
        return False
    digest = hashlib.sha256()
    for block in read_blocks(path):
        digest.update(block)
    return digest.hexdigest() == download.sha256
