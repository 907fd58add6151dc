"""Tensors and JSON as plain files, read as if a stranger had written them.

Nothing in them is executed, and every number that says how much to read or to allocate is first held against
the size of the file. Tensors are in the safetensors format
(https://github.com/huggingface/safetensors#format): eight bytes with the length of a JSON header, the header
with dtype, shape and place of each tensor, then their raw bytes without gaps.
"""

import json
import math
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from gptmini.errors import DamagedError
from gptmini.schema import Section, explain

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

_MAX_JSON_BYTES = 16 * 2**20  # the header of a model with 10,000 layers fits


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """JSON text as it stands in our files: equal values give equal bytes."""
    return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises DamagedError naming the file where there is none."""
    with _damage(path):
        _check_regular(path)
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"more than {_MAX_JSON_BYTES:,} bytes of JSON")
        return _parse_json(path.read_bytes())


def tensor_file_pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """A safetensors file of `tensors`, piece by piece, so that at most one tensor is copied at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data starts at a multiple of 8
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        yield _bytes_of(tensor.detach().cpu().contiguous())


class TensorFiles(Mapping[str, Tensor]):
    """Safetensors files as one mapping from names to tensors, each read from disk when it is asked for.

    Opening reads and checks the headers only. Raises DamagedError naming the file and what is wrong in it;
    reading a tensor allocates as many bytes as the file holds for it.
    """

    def __init__(self, paths: Iterable[Path]):
        self._places: dict[str, tuple[Path, _Place, int]] = {}
        for path in paths:
            with _damage(path):
                data_start, places = _read_header(path)
                if twice := sorted(places.keys() & self._places.keys()):
                    raise ValueError(f"tensor {twice[0]!r} is in another file too")
            for name, place in places.items():
                self._places[name] = path, place, data_start + place.data_offsets[0]

    def __getitem__(self, name: str) -> Tensor:
        path, place, start = self._places[name]
        with _damage(path), open(path, "rb") as file:
            tensor = torch.empty(place.shape, dtype=_DTYPES[place.dtype])
            file.seek(start)
            if file.readinto(_bytes_of(tensor)) != place.size:
                raise ValueError(f"ends inside tensor {name!r}")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class _Place(Section):
    """A tensor's entry in the header."""

    dtype: Annotated[str, Field(pattern=f"^({'|'.join(_DTYPES)})$")]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=8)]
    data_offsets: Annotated[tuple[int, int], Field(strict=False)]

    @property
    def size(self) -> int:
        """Bytes that dtype and shape ask for."""
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize


def _read_header(path: Path) -> tuple[int, dict[str, _Place]]:
    """Where the data starts, and the place of each tensor; raises ValueError if they do not tile the file."""
    _check_regular(path)
    with open(path, "rb") as file:
        file_size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if file_size < 8 or length > min(file_size - 8, _MAX_JSON_BYTES):
            raise ValueError(f"not a safetensors file: its header would have {length:,} bytes")
        header = _parse_json(file.read(length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the metadata in the header must be text")
    places: dict[str, _Place] = {}
    for name, entry in header.items():
        try:
            places[name] = _Place.model_validate(entry)
        except ValidationError as error:
            raise ValueError(explain(error, _Place, f"tensor {name!r}")) from None
    end = 0
    for name, place in sorted(places.items(), key=lambda item: item[1].data_offsets):
        if place.data_offsets != (end, end + place.size):
            raise ValueError(
                f"tensor {name!r} of shape {place.shape} must lie at bytes {end} to {end + place.size}, "
                f"but its header says {place.data_offsets}"
            )
        end += place.size
    if 8 + length + end != file_size:
        raise ValueError(f"{file_size:,} bytes long, but its header describes {8 + length + end:,}")
    return 8 + length, places


def _parse_json(text: bytes) -> dict[str, Any]:
    """A JSON object by the letter of the standard: no NaN, no key given twice."""

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            raise ValueError("a key is given twice")
        return values

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    try:
        values = json.loads(text.decode(), object_pairs_hook=without_repeats, parse_constant=no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("must hold a JSON object")
    return values


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor, read and written in place."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _check_regular(path: Path) -> None:
    """A pipe or a device would let the reader wait, or read, for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not a regular file")


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a file is read, as a DamagedError in one line that names the file."""
    try:
        yield
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DamagedError(f"{path}: {' '.join(str(error).split())[:300]}") from None
