"""manifest.json: size and sha256 of every file of a checkpoint, and a checksum of itself.

It is written last, so a folder with a manifest is complete, and verified before anything is loaded.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

from gptmini import atomic_io
from gptmini.checkpoint.safetensors_io import FileContent, file_chunks, json_bytes, printable, read_json
from gptmini.errors import DamagedError, UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

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


def verify(step_folder: Path) -> None:
    """Compare every file of a checkpoint with its manifest.

    Raises DamagedError naming the first file that is missing, unexpected, a link, or not what was written;
    UserError if a later version of gptmini wrote the folder.
    """
    written = _read_manifest(step_folder / MANIFEST)
    names = set(_files(step_folder)) - {MANIFEST}
    if missing := sorted(written.keys() - names):
        raise DamagedError(f"{printable(step_folder / missing[0])}: missing")
    if extra := sorted(names - written.keys()):
        raise DamagedError(f"{printable(step_folder / extra[0])}: not part of the checkpoint: remove it")
    with ThreadPoolExecutor() as pool:  # reading and sha256 release the GIL
        found = pool.map(lambda name: summarize_file(step_folder / name), written)
        for (name, summary), found_summary in zip(written.items(), found, strict=True):
            if found_summary != summary:
                raise DamagedError(
                    f"{step_folder / name}: damaged: its sha256 is not that of what was written"
                )


def manifest_bytes(files: Mapping[str, Summary]) -> bytes:
    """The text of the manifest of these files."""
    body = json_bytes({"format_version": FORMAT_VERSION, "files": files})
    return append_checksum(body.removesuffix(b"\n}\n"))


def append_checksum(body: bytes) -> bytes:
    """A manifest's text with its own sha256 as the last key, so that no byte of it can change unnoticed."""
    return body + b',\n  "sha256": "' + sha256(body).hexdigest().encode() + b'"\n}\n'


def summarize_file(path: Path) -> Summary:
    """Size and sha256 of a file as it is on disk; DamagedError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return _summarize(iter(lambda: file.read(2**20), b""))
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {error.strerror}") from None


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


def _read_manifest(path: Path) -> dict[str, Summary]:
    """The files that a manifest lists."""
    values = read_json(path)
    text = path.read_bytes()
    if text != append_checksum(text[: -len(append_checksum(b""))]):
        raise DamagedError(f"{path}: damaged: its sha256 is not that of what was written")
    check_format_version(values, path)
    files = values.get("files")
    if not isinstance(files, dict):
        raise DamagedError(f"{path}: lists no files")
    return files


def _files(folder: Path) -> Iterator[str]:
    """The files in a folder and below, as paths with `/`; DamagedError for links and devices."""
    for parent, folders, names in os.walk(folder):
        for path in (Path(parent, name) for name in folders + names):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise DamagedError(f"{printable(path)}: not a plain file, as every part of a checkpoint is")
            if path.is_file():
                yield path.relative_to(folder).as_posix()
