"""A nanoGPT checkpoint, which is a pickle, read as a GPT.

`torch.load(weights_only=True)` builds tensors and plain values and refuses everything else; there is no other
way in. Still, open only files of people you trust: that reader has had security holes.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gptmini.checkpoint.gpt2_directory import build_model, save
from gptmini.checkpoint.hf_gpt2 import config_from_gpt2, parameters_from_gpt2
from gptmini.data.tokenizers import load_gpt2
from gptmini.errors import UserError
from gptmini.model import GPT

GPT2_VOCAB_SIZE, PADDED_VOCAB_SIZE = 50257, 50304  # nanoGPT pads GPT-2's vocabulary to a multiple of 64


def import_nanogpt(path: Path) -> GPT:
    """The model in a nanoGPT checkpoint, in eval mode.

    Rows of the embedding that pad GPT-2's vocabulary to 50,304 are dropped: no token has these ids. Raises
    UserError, one line, for whatever is not such a checkpoint.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file that torch warns of is refused below, in one line
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # whatever a damaged or hostile pickle makes torch raise
        reason = " ".join(str(error).split()).partition(". ")[0][:160]
        raise UserError(
            f"{path}: holds more than tensors and plain values, or is damaged, and is not read in any other "
            f"way ({type(error).__name__}: {reason})"
        ) from None
    try:
        return _build(content)
    except UserError as error:
        raise UserError(f"{path}: not a checkpoint of nanoGPT: {error}") from None


def convert_nanogpt(source: Path, target: Path) -> list[str]:
    """Write the nanoGPT checkpoint `source` as the GPT-2 directory `target`; returns lines for the user.

    GPT-2's tokenizer comes with it where the vocabulary is GPT-2's and its files can be had.
    """
    model = import_nanogpt(source)
    difference, deviation = gelu_difference(model)
    notes = [
        f"{target}: written",
        "nanoGPT computes the exact GELU and GPT-2 its tanh form: on random tokens the logits differ by "
        f"{difference:.1e} at most, where a logit's standard deviation is {deviation:.1e}",
    ]
    tokenizer = None
    if model.config.vocab_size == GPT2_VOCAB_SIZE:
        try:
            tokenizer = load_gpt2()
        except UserError as error:
            notes.append(f"no tokenizer written: {error}")
    else:
        notes.append("no tokenizer written: a nanoGPT checkpoint holds none, and this one's is not GPT-2's")
    save(target, model, tokenizer)
    return notes


def _build(content: Any) -> GPT:
    content = content if isinstance(content, dict) else {}
    args, state = content.get("model_args"), content.get("model")
    if not (isinstance(args, dict) and isinstance(state, dict) and all(map(torch.is_tensor, state.values()))):
        raise UserError("it has no model_args and model")
    # prefixes that torch.compile and DDP leave in the names
    tensors = {str(name).removeprefix("_orig_mod.").removeprefix("module."): t for name, t in state.items()}
    vocab_size = args.get("vocab_size")
    if vocab_size == PADDED_VOCAB_SIZE:
        vocab_size = GPT2_VOCAB_SIZE
        for name in ("transformer.wte.weight", "lm_head.weight"):
            if name in tensors:
                tensors[name] = tensors[name][:GPT2_VOCAB_SIZE]
    config = config_from_gpt2(
        {
            "model_type": "gpt2",
            **{key: args.get(key) for key in ("n_layer", "n_head", "n_embd")},
            "n_positions": args.get("block_size"),
            "vocab_size": vocab_size,
            "resid_pdrop": args.get("dropout", 0.0),
            "gptmini": {"bias": args.get("bias", True)},
        }
    )
    for name, tensor in tensors.items():
        if name.startswith("transformer.h.") and tensor.dim() == 2:
            tensors[name] = tensor.T  # a Linear weight (out, in), which GPT-2's files hold as (in, out)
    return build_model(config, parameters_from_gpt2(tensors, config)).eval()


@torch.inference_mode()
def gelu_difference(model: GPT) -> tuple[float, float]:
    """The most by which nanoGPT's exact GELU changes a logit, on random tokens, and the logits' deviation."""
    generator = torch.Generator().manual_seed(0)
    shape = (4, min(model.config.context_length, 256))
    tokens = torch.randint(model.config.vocab_size, shape, generator=generator)
    ours = model(tokens)
    with _ExactGelu():
        theirs = model(tokens)
    return (ours - theirs).abs().max().item(), theirs.std().item()


class _ExactGelu(TorchFunctionMode):
    """The exact GELU wherever the tanh form is asked for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return F.gelu(args[0]) if func is F.gelu and kwargs else func(*args, **(kwargs or {}))
