"""Corpora with a name: one that every Python brings along, and some that are downloaded once.

A download is kept in the cache folder. It is used only if its sha256 is right, so a copy that was put there
by hand is as good.
"""

import os
import re
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gptmini.data.documents import BLOCK_BYTES, Document, read_documents, split_documents
from gptmini.data.python_docs import PYTHON_DOCS, python_docs
from gptmini.errors import UserError
from gptmini.paths import path_argument

# Files on the Hugging Face Hub: its own library downloads them, and resumes when the connection breaks.
_HUB_URL = re.compile(r"https://huggingface\.co/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class NamedCorpus:
    """A corpus with a name: what it is, and the file to download for it, checked by its digest."""

    description: str
    licence: str
    url: str = ""  # "": nothing to download
    names: tuple[str, ...] = ()  # accepted in the cache folder; messages recommend the first
    sha256: str = ""
    size_bytes: int = 0
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
        names=("tiny-shakespeare.txt", "input.txt", "tinyshakespeare.txt"),
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        size_bytes=1_115_394,
    ),
    "tiny-stories": NamedCorpus(
        "2 million short stories in a small child's words, written by GPT-3.5 and GPT-4",
        licence="CDLA-Sharing-1.0",
        url="https://huggingface.co/datasets/roneneldan/TinyStories/resolve/"
        "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/TinyStories-train.txt",
        names=("TinyStories-train.txt",),
        sha256="c5cf5e22ff13614e830afbe61a99fbcbe8bcb7dd72252b989fa1117a368d401f",
        size_bytes=1_924_281_556,
        separator=b"<|endoftext|>",
    ),
    "enwik8": NamedCorpus(
        "the first 100 million bytes of the English Wikipedia of 2006, as XML",
        licence="CC-BY-SA-3.0 and GFDL-1.2",
        url="https://mattmahoney.net/dc/enwik8.zip",
        names=("enwik8.zip",),
        sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        size_bytes=36_445_475,
        member="enwik8",
    ),
    "fineweb-edu": NamedCorpus(
        "educational web pages: the first of the 14 parquet files of the 10-billion-token sample",
        licence="ODC-By-1.0",
        url="https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu/resolve/"
        "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9/sample/10BT/000_00000.parquet",
        names=("fineweb-edu-10BT-000.parquet", "000_00000.parquet", "sample/10BT/000_00000.parquet"),
        sha256="b1ba7b2ce4cb5ea6ef42dca40263eabb85f37700d01693a68e9b30a31d78e871",
        size_bytes=2_152_819_114,
    ),
}


def open_named(name: str) -> Callable[[], Iterable[Document]]:
    """The function that reads a named corpus's documents; downloads it now if need be.

    Raises UserError with what to do when it cannot be had.
    """
    corpus = NAMED[name]
    if not corpus.url:
        return python_docs
    path = _find(corpus) or _download(name, corpus)
    if corpus.member is not None:
        return partial(_read_zip, path, corpus.member)
    if corpus.separator is not None:
        return partial(split_documents, path, corpus.separator)
    return partial(read_documents, path, "text")


def needs_download(name: str) -> bool:
    """Whether this is a named corpus that is not in the cache folder yet."""
    return name in NAMED and bool(NAMED[name].url) and _find(NAMED[name]) is None


def list_named() -> str:
    """A table of the named corpora: name, size of the download, licence and what it is."""
    rows = []
    for name, corpus in NAMED.items():
        megabytes = f"{corpus.size_bytes / 1e6:,.0f} MB" if corpus.url else "-"
        rows.append(f"{name:<18}{megabytes:>9}  {corpus.licence:<27}{corpus.description}")
    return "\n".join(rows)


def cache_folder() -> Path:
    """Where downloads and token files are kept: GPTMINI_CACHE_DIR, or the user's cache folder."""
    if folder := os.environ.get("GPTMINI_CACHE_DIR"):
        return path_argument(folder)
    import pooch  # takes a moment to import, and most runs do not need it

    return Path(pooch.os_cache("gptmini"))


def _find(corpus: NamedCorpus) -> Path | None:
    """The file in the cache folder, under any of its names, if its digest is right."""
    import pooch

    paths = (cache_folder() / name for name in corpus.names)
    same_size = (path for path in paths if path.is_file() and path.stat().st_size == corpus.size_bytes)
    return next((path for path in same_size if pooch.file_hash(str(path)) == corpus.sha256), None)


def _download(name: str, corpus: NamedCorpus) -> Path:
    """The file, fetched into the cache folder."""
    import huggingface_hub
    import pooch

    folder = cache_folder()
    try:
        if hub := _HUB_URL.fullmatch(corpus.url):
            repository, revision, file = hub.groups()
            path = huggingface_hub.hf_hub_download(
                repository, file, repo_type="dataset", revision=revision, local_dir=folder
            )
            if pooch.file_hash(path) != corpus.sha256:
                os.remove(path)
                raise ValueError(f"the sha256 of {path} is wrong")
        else:
            known_hash, show_bar = f"sha256:{corpus.sha256}", sys.stderr.isatty()
            path = pooch.retrieve(corpus.url, known_hash, corpus.names[0], folder, progressbar=show_bar)
    except Exception as error:  # a wrong digest, or whatever requests and httpx raise without a network
        reason = textwrap.shorten(str(error), 120, placeholder=" ...")
        raise UserError(
            f"{name}: cannot be downloaded ({type(error).__name__}: {reason}); without a "
            f"network put {corpus.url} ({corpus.size_bytes:,} bytes, sha256 {corpus.sha256}) at "
            f"{folder / corpus.names[0]}, or use {PYTHON_DOCS} or the path of a text of your own "
            "(GPTMINI_CACHE_DIR names another cache folder)"
        ) from None
    return Path(path)


def _read_zip(path: Path, member: str) -> Iterator[Document]:
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        yield Document(f"{path}/{member}", iter(partial(file.read, BLOCK_BYTES), b""))
