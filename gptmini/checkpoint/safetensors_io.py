"""Tensors and JSON as plain files, read as if an attacker had written them.

Nothing in them is executed, and reading allocates a small multiple of the file's size at most.
"""

import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptmini.errors import DamagedError

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_MAX_JSON_BYTES = 16 * 2**20
_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV}

FileContent = bytes | Mapping[str, Tensor]
"""What a file is to hold: these bytes, or tensors as a safetensors file."""


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """JSON text as it stands in our files: equal values give equal bytes."""
    return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises DamagedError naming the file where there is none."""
    with raises_damaged(path):
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > _MAX_JSON_BYTES:
                raise ValueError(f"more than {_MAX_JSON_BYTES:,} bytes of JSON")
            text = file.read()
        # by the letter of the standard: no key given twice, no NaN
        try:
            values = json.loads(
                text.decode(), object_pairs_hook=_without_repeats, parse_constant=_no_constant
            )
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not isinstance(values, dict):
            raise ValueError("must hold a JSON object")
        return values


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is given twice")
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def file_chunks(content: FileContent) -> Iterator[bytes | memoryview]:
    """The bytes of a file, in chunks, so that at most one tensor is copied at a time.

    We write safetensors files (https://github.com/huggingface/safetensors#format), because a checkpoint is
    hashed and read back while it is streamed to disk; the library reads them.
    """
    if isinstance(content, bytes):
        yield content
        return
    # the length of the header, the header with each tensor's dtype, shape and place, then the raw bytes
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in content.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data starts at a multiple of 8
    yield len(text).to_bytes(8, "little") + text
    for tensor in content.values():
        # the tensor's own memory, seen as bytes
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


class TensorFiles(Mapping[str, Tensor]):
    """Safetensors files as one mapping from names to tensors, each read from disk when it is asked for.

    The tensors lie in memory-mapped files: copy what is kept. Opening reads and checks the headers only.
    Raises DamagedError naming the file and what is wrong in it.
    """

    def __init__(self, paths: Iterable[Path]):
        self._files: dict[str, tuple[Path, Any]] = {}  # by the name of the tensor
        for path in paths:
            with raises_damaged(path), open_regular(path):  # whose errors say more than safe_open's
                file: Any = safe_open(path, framework="pt")
                for name in file.keys():  # noqa: SIM118  # a safe_open is no mapping
                    if name in self._files:
                        raise ValueError(f"tensor {name!r} is in another file too")
                    self._files[name] = path, file

    def __getitem__(self, name: str) -> Tensor:
        path, file = self._files[name]
        with raises_damaged(path):
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def printable(text: object) -> str:
    """A path or name for a message of one line: quoted if it holds line ends or other control characters."""
    return str(text) if str(text).isprintable() else repr(str(text))


def open_regular(path: Path) -> BinaryIO:
    """Open a file, or what a link points to, for reading; ValueError for anything but a regular file.

    A pipe or a device could make the reader wait, or read, for ever.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb") if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    if file is None:
        os.close(descriptor)
        raise ValueError("not a regular file")
    return file


@contextmanager
def raises_damaged(path: Path) -> Iterator[None]:
    """Turn what is wrong in a file that is read into a DamagedError of one line that names the file.

    Where the machine fails (too many open files, no permission, a bad disk), the file may be whole all the
    same: that stays an OSError, and names the file too.
    """
    try:
        yield
    except DamagedError:
        raise
    except OSError as error:
        if error.errno not in _NO_FILE and path.exists():  # what safe_open raises has no errno
            raise OSError(error.errno, error.strerror or "cannot be opened", str(path)) from None
        raise DamagedError(f"{path}: cannot be read: {error.strerror or 'no such file'}") from None
    except RuntimeError as error:  # torch cannot map the file: too many are open, or no memory is left
        if not path.exists():
            raise DamagedError(f"{path}: cannot be read: no such file") from None
        raise OSError(None, str(error).partition("\n")[0], str(path)) from None
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise DamagedError(f"{path}: not a safetensors file: {printable(reason)[:300]}") from None
    except ValueError as error:
        raise DamagedError(f"{path}: {' '.join(str(error).split())[:300]}") from None
