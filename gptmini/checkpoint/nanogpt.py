"""A nanoGPT checkpoint read as a GPT, with the vocabulary of a character model.

The checkpoint is a zip file of a pickle and of raw tensors. Nothing in it is executed, and reading allocates
a small multiple of the file's size at most.
"""

# torch.load(weights_only=True) bounds nothing: a pickle of 50 bytes makes it fill a bytearray of any length,
# and with mmap=True a tensor that is longer than its record gets the bytes of the next one, without an error.

import os
import re
import zipfile
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gptmini.checkpoint.gpt2_directory import build_model, only_finite, save
from gptmini.checkpoint.hf_gpt2 import config_from_gpt2, parameters_from_gpt2
from gptmini.checkpoint.plain_pickle import Name, read_pickle, refuse
from gptmini.checkpoint.safetensors_io import open_regular, printable
from gptmini.data.tokenizers import CharTokenizer, Tokenizer, load_gpt2
from gptmini.errors import DamagedError, UserError, path_error
from gptmini.model import GPT

GPT2_VOCAB_SIZE, PADDED_VOCAB_SIZE = 50257, 50304  # nanoGPT pads GPT-2's vocabulary to a multiple of 64
_MAX_META_BYTES = 16 * 2**20
_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
}


def convert_nanogpt(source: Path, target: Path, meta: Path | None = None) -> list[str]:
    """Write the nanoGPT checkpoint `source` as the GPT-2 directory `target`; returns lines for the user.

    GPT-2's tokenizer comes with it where the vocabulary is GPT-2's and its files can be had. The tokenizer of
    a character model is in its meta.pkl: `meta`, or else where nanoGPT puts it, beside the checkpoint or in
    data/DATASET.
    """
    model, dataset = read_nanogpt(source)
    difference, deviation = gelu_difference(model)
    notes = [
        f"{target}: written",
        "nanoGPT computes the exact GELU and GPT-2 its tanh form: on random tokens the logits differ by "
        f"{difference:.1e} at most, where a logit's standard deviation is {deviation:.1e}",
    ]
    tokenizer = None
    if meta is not None:
        tokenizer = read_meta(meta)
    elif model.config.vocab_size == GPT2_VOCAB_SIZE:
        try:
            tokenizer = load_gpt2()
        except UserError as error:
            notes.append(f"no tokenizer written: {error}")
    else:
        places = [source.parent / "meta.pkl"]
        if re.fullmatch(r"\w[\w.-]*", dataset):
            places += [up / "data" / dataset / "meta.pkl" for up in (source.absolute().parent.parent, Path())]
        if found := next((place for place in places if place.is_file()), None):
            tokenizer = read_meta(found)
            notes.append(f"tokenizer from {found}")
        else:
            notes.append("no tokenizer written: the characters are in nanoGPT's meta.pkl; name it by --meta")
    save(target, model, tokenizer)
    return notes


def read_nanogpt(path: Path) -> tuple[GPT, str]:
    """The model in a nanoGPT checkpoint, in eval mode, and the name of the dataset that it was trained on.

    Rows of the embedding that pad GPT-2's vocabulary to 50,304 are dropped: no token has these ids. Raises
    UserError for whatever is not such a checkpoint, DamagedError for weights that are NaN or infinite.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            return _build(archive, path)
    except DamagedError:
        raise
    except OSError as error:
        raise path_error(path, error) from None
    except UserError as error:
        raise UserError(f"{path}: not a checkpoint of nanoGPT: {error}") from None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError):  # zipfile raises these
        raise UserError(
            f"{path}: is no zip file of torch.save or is damaged, and is not read in any other way"
        ) from None


def read_meta(path: Path) -> Tokenizer:
    """The characters in the meta.pkl of one of nanoGPT's character datasets.

    They have no end of text: as in nanoGPT's sample.py, a text without a prompt starts from a line break.
    """
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > _MAX_META_BYTES:
                raise UserError("it is too long")
            content = read_pickle(file.read())
        found = content.get("itos") if isinstance(content, dict) else None
        characters: list[Any] = [found.get(i) for i in range(len(found))] if isinstance(found, dict) else []
        is_text = all(
            isinstance(c, str) and len(c) == 1 and not "\ud800" <= c <= "\udfff" for c in characters
        )
        if not characters or not is_text or len({*characters}) < len(characters):
            raise UserError("its itos must give each id from 0 up a character")
    except OSError as error:
        raise path_error(path, error) from None
    except ValueError as error:
        raise UserError(f"{path}: not the characters of a nanoGPT dataset: {error}") from None
    tokenizer = CharTokenizer(characters, special_tokens=(), end_of_text=None)
    tokenizer.first_token = characters.index("\n") if "\n" in characters else None
    return tokenizer


def _build(archive: zipfile.ZipFile, path: Path) -> tuple[GPT, str]:
    file_bytes = path.stat().st_size
    records = {info.filename.partition("/")[2]: info for info in archive.infolist()}  # all are in one folder

    @cache  # many tensors may be views of one record
    def read(name: str) -> bytearray:
        if name not in records:
            raise UserError(f"it has no record {printable(name)[:60]}")
        # torch.save compresses nothing; a record that would grow as it is read is nobody's weights
        info = records[name]
        is_encrypted = info.flag_bits & 1
        if info.compress_type != zipfile.ZIP_STORED or is_encrypted or info.file_size > file_bytes:
            raise UserError(f"its record {printable(name)[:60]} is compressed or longer than the file")
        return bytearray(archive.read(info))

    # the pickle, in which each tensor is a record's name with a shape
    content = read_pickle(read("data.pkl"), _call)
    content = content if isinstance(content, dict) else {}
    args, state, settings = (content.get(key) for key in ("model_args", "model", "config"))
    if not (isinstance(args, dict) and isinstance(state, dict)):
        raise UserError("it has no model_args and model")
    vocab_size = args.get("vocab_size")
    rows = GPT2_VOCAB_SIZE if vocab_size == PADDED_VOCAB_SIZE else None
    config = config_from_gpt2(
        {
            "model_type": "gpt2",
            **{key: args.get(key) for key in ("n_layer", "n_head", "n_embd")},
            "n_positions": args.get("block_size"),
            "vocab_size": rows or vocab_size,
            "resid_pdrop": args.get("dropout", 0.0),
            "gptmini": {"bias": args.get("bias", True)},
        }
    )

    # the tensors, under GPT-2's names and in its shapes
    stored = {}
    for key, tensor in state.items():
        # prefixes that torch.compile and DDP leave in the names, in any order
        name = ".".join(part for part in printable(key).split(".") if part not in ("_orig_mod", "module"))
        if name in stored or not isinstance(tensor, _Stored):
            raise UserError(f"{name[:80]} is there twice, or is no plain tensor of floats")
        stored[name] = tensor
    if stored.get("lm_head.weight") == stored.get("transformer.wte.weight"):
        stored.pop("lm_head.weight", None)  # tied: the same numbers
    nbytes = sum(tensor.nbytes for tensor in stored.values())
    if nbytes > file_bytes:
        raise UserError(f"its tensors would take {nbytes:,} bytes, and the file has {file_bytes:,}")
    tensors = {}
    for name, tensor in stored.items():
        data = read(f"data/{tensor.record}")
        last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True))
        if (last + 1) * tensor.dtype.itemsize > len(data):
            raise UserError(f"tensor {name[:80]} is larger than its record in the file")
        values = torch.frombuffer(data, dtype=tensor.dtype)
        values = values.as_strided(tensor.shape, tensor.stride, tensor.offset)
        if values.dim() == 2 and name in ("transformer.wte.weight", "lm_head.weight"):
            values = values[:rows]
        elif values.dim() == 2 and name.startswith("transformer.h."):
            values = values.T  # a Linear weight (out, in), which GPT-2's files hold as (in, out)
        tensors[name] = values
    model = build_model(config, only_finite(parameters_from_gpt2(tensors, config), path)).eval()
    dataset = settings.get("dataset") if isinstance(settings, dict) else None
    return model, dataset if isinstance(dataset, str) else ""


class _Stored(NamedTuple):
    """A tensor that is not read yet."""

    record: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def _call(name: str, args: Any) -> Any:
    """What takes the place of the classes and functions in a pickle of torch.save."""
    match name, args:
        case "", ("storage", Name(text), str(record), _, _):
            return _DTYPES.get(text), record
        case "collections.OrderedDict", ():
            return {}
        case "torch.serialization._get_layout" | "torch.Size", _:  # of a sparse tensor, refused by its name
            return None
        case "torch._utils._rebuild_tensor_v2", ((dtype, record), offset, tuple(shape), tuple(stride), *_):
            sizes = (offset, *shape, *stride)
            if len(shape) == len(stride) < 8 and all(type(n) is int and 0 <= n < 2**63 for n in sizes):
                return _Stored(record, dtype, offset, shape, stride) if dtype else None
        case "torch._utils._rebuild_parameter", (_Stored() as tensor, *_):
            return tensor
    return refuse(name or "reference")


@torch.inference_mode()
def gelu_difference(model: GPT) -> tuple[float, float]:
    """The most by which nanoGPT's exact GELU changes a logit, on random tokens, and the logits' deviation."""
    generator = torch.Generator().manual_seed(0)
    # not more rows than the embedding is wide: the logits take no more memory than it
    shape = (1, min(model.config.context_length, model.config.n_embd, 256))
    tokens = torch.randint(model.config.vocab_size, shape, generator=generator)
    ours = model(tokens)
    with _ExactGelu():
        theirs = model(tokens)
    return (ours - theirs).abs().max().item(), theirs.std().item()


class _ExactGelu(TorchFunctionMode):
    """The exact GELU wherever the tanh form is asked for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return F.gelu(args[0]) if func is F.gelu and kwargs else func(*args, **(kwargs or {}))
