"""manifest.json: size and sha256 of every file of a checkpoint, and a checksum of itself.

It is written last, so a folder with a manifest is complete, and verified before anything is loaded. Files
that it does not list, such as a file manager's .DS_Store or the Hub's README.md, are left alone.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from gptmini import atomic_io
from gptmini.checkpoint.safetensors_io import (
    FileContent,
    file_chunks,
    json_bytes,
    open_regular,
    printable,
    raises_damaged,
    read_json,
)
from gptmini.errors import DamagedError, UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
STATE = "training/state.json"
OPTIMIZER = "training/optimizer.safetensors"
_REQUIRED = {"config.json", "model.safetensors", STATE, OPTIMIZER}
_NAME = re.compile(r"(?!.*\.\.)[\w.-]+(/[\w.-]+)*")  # never leads out of the folder
_MAX_FILES = 100

Summary = dict[str, int | str]
"""Size in bytes and sha256 of a file."""


def check_format_version(values: Mapping[str, Any], where: str | Path) -> None:
    """Raise UserError if a JSON file of ours, read from `where`, has another format than this version's."""
    version = values.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UserError(
            f"{where}: format version {version!r:.20} is not known to this gptmini, which reads version "
            f"{FORMAT_VERSION}: use the gptmini that wrote it"
        )


def write_files(folder: Path, contents: Mapping[str, FileContent]) -> None:
    """Fill a new folder with files and their manifest; DamagedError if reading back gives other bytes.

    Takes as much memory as the matrices that GPT-2's files hold transposed; from a GPU, as all tensors.
    """
    for parent in {(folder / name).parent for name in contents}:
        atomic_io.make_folder(parent)
    # Two threads transpose, hash and read back while this one writes: each takes longer than a fast disk.
    with ThreadPoolExecutor(max_workers=2) as pool:
        encoded = {name: pool.submit(list, file_chunks(content)) for name, content in contents.items()}
        summaries = {
            name: pool.submit(lambda c: _summarize(c.result()), chunks) for name, chunks in encoded.items()
        }
        checks = []
        for name, chunks in encoded.items():
            atomic_io.create_file(folder / name, chunks.result())
            checks.append(pool.submit(_read_back, folder / name, chunks.result()))
        for check in checks:
            check.result()
        manifest = manifest_bytes({name: summary.result() for name, summary in summaries.items()})
    # last: the manifest says that all the others are there
    atomic_io.create_file(folder / MANIFEST, manifest)
    _read_back(folder / MANIFEST, [manifest])


def verify(step_folder: Path, only: Collection[str] = ()) -> None:
    """Compare the files of a checkpoint, or `only` these, with its manifest.

    They may be links, as in the Hub's cache: the digest says what may be read. Raises DamagedError naming the
    first file that is missing or not what was written; UserError if a later version of gptmini wrote the
    folder; OSError where the machine cannot read a file.
    """
    written = read_manifest(step_folder)
    with ExitStack() as stack, ThreadPoolExecutor() as pool:  # reading and sha256 release the GIL
        # All are opened first: what is pruned from now on can still be read to its end.
        files = {}
        for name in only or written:
            with raises_damaged(step_folder / name):
                files[name] = stack.enter_context(open_regular(step_folder / name))
        matches = pool.map(lambda name: _matches(step_folder / name, files[name], written[name]), files)
        for name, is_whole in zip(files, matches, strict=True):
            if not is_whole:
                raise DamagedError(
                    f"{step_folder / name}: damaged: its sha256 is not that of what was written"
                )


def _matches(path: Path, file: BinaryIO, summary: object) -> bool:
    """Whether an open file is what the manifest says. Its size is compared first, so no more is ever read."""
    if not isinstance(summary, dict) or os.fstat(file.fileno()).st_size != summary.get("size"):
        return False
    with raises_damaged(path):
        return _summarize(iter(lambda: file.read(2**20), b"")) == summary


def fingerprint(step_folder: Path) -> list[tuple[int, int, int]]:
    """What changes with any write to a checkpoint's files: cheap to compare, once they were verified."""
    with raises_damaged(step_folder):
        found = [os.stat(step_folder / name) for name in (MANIFEST, *read_manifest(step_folder))]
    return [(status.st_ino, status.st_size, status.st_mtime_ns) for status in found]


def manifest_bytes(files: Mapping[str, Summary]) -> bytes:
    """The text of the manifest of these files."""
    body = json_bytes({"format_version": FORMAT_VERSION, "files": files})
    return append_checksum(body.removesuffix(b"\n}\n"))


def append_checksum(body: bytes) -> bytes:
    """A manifest's text with its own sha256 as the last key, so that no byte of it can change unnoticed."""
    return body + b',\n  "sha256": "' + sha256(body).hexdigest().encode() + b'"\n}\n'


def _summarize(chunks: Iterable[bytes | memoryview]) -> Summary:
    digest, size = sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


def _read_back(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Raise DamagedError if the file does not hold exactly these bytes."""
    buffer = bytearray(2**20)  # small enough for the processor's cache
    with open(path, "rb") as file:
        for chunk in chunks:
            for start in range(0, len(chunk), len(buffer)):
                part = memoryview(chunk)[start : start + len(buffer)]
                if file.readinto(memoryview(buffer)[: len(part)]) != len(part) or buffer[: len(part)] != part:
                    raise DamagedError(f"{path}: the disk does not return what was written to it")
        if file.read(1):
            raise DamagedError(f"{path}: the disk does not return what was written to it")


def read_manifest(step_folder: Path) -> dict[str, Summary]:
    """The files that a checkpoint's manifest lists; DamagedError if it is not what was written."""
    path = step_folder / MANIFEST
    values = read_json(path)
    with raises_damaged(path):
        text = path.read_bytes()
    if text != append_checksum(text[: -len(append_checksum(b""))]):
        raise DamagedError(f"{path}: damaged: its sha256 is not that of what was written")
    check_format_version(values, path)
    files = values.get("files")
    if not isinstance(files, dict) or not files.keys() >= _REQUIRED or len(files) > _MAX_FILES:
        raise DamagedError(f"{path}: does not list the files of a checkpoint")
    if strange := [name for name in files if not _NAME.fullmatch(name)]:
        raise DamagedError(f"{path}: {printable(strange[0])[:100]} is no file of a checkpoint")
    return files
