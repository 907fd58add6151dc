"""A checkpoint that nanoGPT wrote, as a Hugging Face GPT-2 directory.

nanoGPT keeps its weights in a pickle. It is read by `torch.load(weights_only=True)`, which builds tensors
and plain values and refuses everything else; there is no other way in. Still, open only files of people you
trust: that reader has had holes.

nanoGPT computes the exact GELU, x times the normal distribution function, where GPT-2 has its tanh form, so
the model becomes a slightly different one; `Imported` says by how much.
"""

import pickle  # for the name of its error; nothing is unpickled by it
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gptmini import atomic_io
from gptmini.checkpoint.hf_gpt2 import config_from_gpt2, from_gpt2, to_gpt2
from gptmini.checkpoint.safetensors_io import tensor_file_pieces
from gptmini.checkpoint.store import model_files
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import UserError
from gptmini.model import GPT

GPT2_VOCAB_SIZE, PADDED_VOCAB_SIZE = 50257, 50304  # nanoGPT pads GPT-2's vocabulary to a multiple of 64
_SIZES = {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "n_positions": "block_size"}


class Imported(NamedTuple):
    """A model from nanoGPT, and what its other GELU means for it."""

    model: GPT
    largest_difference: float
    """Of any logit, over four windows of random tokens."""
    mean_difference: float
    """Of all these logits, their size without sign."""
    typical_logit: float
    """The standard deviation of these logits, to compare with."""


def import_nanogpt(path: Path) -> Imported:
    """The model in a nanoGPT checkpoint, in eval mode.

    Rows of the embedding that pad GPT-2's vocabulary to 50,304 are dropped: no token has these ids. Raises
    UserError, one line, for whatever is not such a checkpoint.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are then refused in one line
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0][:160]
        raise UserError(
            f"{path}: holds more than tensors and plain values, or is damaged, and is not read in any other "
            f"way ({type(error).__name__}: {reason})"
        ) from None
    try:
        model = _build(content)
    except UserError as error:
        raise UserError(f"{path}: not a checkpoint of nanoGPT: {error}") from None
    return Imported(model, *_differences(model))


def save_gpt2_folder(path: Path, model: GPT, tokenizer: Tokenizer | None) -> None:
    """Write a model as a new Hugging Face GPT-2 directory; UserError where `path` exists."""
    if path.exists():
        raise UserError(f"{path}: exists already; choose another folder")
    atomic_io.make_folder(path.absolute().parent)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with atomic_io.new_folder(path) as folder:
        for name, content in model_files(weights, model.config, tokenizer).items():
            pieces = content if isinstance(content, bytes) else tensor_file_pieces(content)
            atomic_io.create_file(folder / name, pieces)


def _build(content: Any) -> GPT:
    content = content if _is_dict(content) else {}
    args, tensors = content.get("model_args"), content.get("model")
    if not _is_dict(args) or not _is_dict(tensors) or not all(map(torch.is_tensor, tensors.values())):
        raise UserError("it has no model_args and model")
    tensors = {name.removeprefix("_orig_mod.").removeprefix("module."): t for name, t in tensors.items()}
    sizes = {ours: args.get(theirs) for ours, theirs in _SIZES.items()}
    vocab_size = args.get("vocab_size")
    if vocab_size == PADDED_VOCAB_SIZE:
        vocab_size = GPT2_VOCAB_SIZE
        for name in ("transformer.wte.weight", "lm_head.weight"):
            if name in tensors:
                tensors[name] = tensors[name][:GPT2_VOCAB_SIZE]
    values = {**sizes, "vocab_size": vocab_size, "resid_pdrop": args.get("dropout", 0.0)}
    ours = {"bias": args.get("bias", True)}
    config = config_from_gpt2({"model_type": "gpt2", **values, "gptmini": ours})
    model = GPT(config)
    model.load_state_dict(from_gpt2(_as_gpt2(tensors, model), config))
    return model.eval()


def _as_gpt2(tensors: Mapping[str, Tensor], model: GPT) -> dict[str, Tensor]:
    """nanoGPT's Linear weights turned into GPT-2's, and zeros for the biases that it left out."""
    turned = {
        name: tensor.T if tensor.dim() == 2 and name.startswith("transformer.h.") else tensor
        for name, tensor in tensors.items()
    }
    if model.config.bias:
        return turned
    zeros = to_gpt2(model.state_dict(), model.config)
    return {name: zero for name, zero in zeros.items() if name.endswith(".bias")} | turned


@torch.inference_mode()
def _differences(model: GPT) -> tuple[float, float, float]:
    generator = torch.Generator().manual_seed(0)
    shape = (4, min(model.config.context_length, 256))
    tokens = torch.randint(model.config.vocab_size, shape, generator=generator)
    ours = model(tokens)
    with _ExactGelu():
        theirs = model(tokens)
    difference = (ours - theirs).abs()
    return difference.max().item(), difference.mean().item(), theirs.std().item()


class _ExactGelu(TorchFunctionMode):
    """The exact GELU wherever the tanh form is asked for."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return F.gelu(args[0]) if func is F.gelu and kwargs else func(*args, **(kwargs or {}))


def _is_dict(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)
