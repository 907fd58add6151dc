"""GPT's parameters and config <-> the tensors and the config.json of a Hugging Face GPT-2 directory.

Four things differ: the names; a block's four projections, which GPT-2 stores as (in, out); the tied output
weights, which no file holds; and missing biases, which GPT-2 does not know, so they are stored as zeros.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gptmini.checkpoint.manifest import FORMAT_VERSION, check_format_version
from gptmini.checkpoint.safetensors_io import printable
from gptmini.config import Attention, GPTConfig
from gptmini.errors import UserError
from gptmini.model import GPT
from gptmini.schema import Section, validate

_GPT2_NAMES = {"token_embedding": "wte", "position_embedding": "wpe", "blocks": "h", "ln_f": "ln_f"}
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_OLD_BUFFERS = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # causal masks in files of older versions


def empty_model(config: GPTConfig) -> GPT:
    """A GPT on the meta device: its parameters have shapes, and take no memory."""
    with torch.device("meta"), _SkipInit():
        return GPT(config)


class _SkipInit(TorchFunctionMode):
    """Skip torch.nn.init, which on the meta device would import torch.compile for seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) != "torch.nn.init":
            return func(*args, **(kwargs or {}))


@cache
def parameter_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of GPT: all biases, also without config.bias; tied weights once.

    >>> shapes = parameter_shapes(GPTConfig(n_layer=1, n_head=2, n_embd=8, context_length=4, vocab_size=10))
    >>> shapes["token_embedding.weight"], shapes["blocks.0.mlp.c_fc.weight"]
    ((10, 8), (32, 8))
    """
    model = empty_model(config.model_copy(update={"bias": True}))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def to_gpt2(state: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """GPT's parameters under the names and in the shapes that GPT2LMHeadModel saves.

    Nothing is copied: transposed weights are views, made contiguous one at a time when they are written.

    >>> config = GPTConfig(n_layer=1, n_head=2, n_embd=8, context_length=4, vocab_size=10)
    >>> state = {name: torch.zeros(shape) for name, shape in parameter_shapes(config).items()}
    >>> to_gpt2(state, config)["transformer.h.0.mlp.c_fc.weight"].shape
    torch.Size([8, 32])
    """
    tensors = {}
    for name, shape in parameter_shapes(config).items():
        tensor = torch.zeros(shape) if _is_absent_bias(name, config) else state[name]
        tensors[f"transformer.{_gpt2_name(name)}"] = tensor.T if name.endswith(_TRANSPOSED) else tensor
    return tensors


def parameters_from_gpt2(tensors: Mapping[str, Tensor], config: GPTConfig) -> Iterator[tuple[str, Tensor]]:
    """GPT's parameters from the tensors of a GPT-2 directory, as float32 copies, each read when needed.

    Raises UserError naming the tensor that is missing, unexpected, of another shape or dtype than `config`
    needs, or not zero where `config` has no bias.
    """
    # Compare the names.
    stored = {name.removeprefix("transformer."): name for name in tensors}
    if len(stored) != len(tensors):
        raise UserError("a tensor is there twice, with and without the prefix transformer.")
    shapes = parameter_shapes(config)
    needed = {_gpt2_name(name) for name in shapes if not _is_absent_bias(name, config)}
    known = {_gpt2_name(name) for name in shapes} | {"lm_head.weight"}
    extra = {name for name in stored.keys() - known if not _OLD_BUFFERS.fullmatch(name)}
    for names, problem in ((needed - stored.keys(), "is missing"), (extra, "has no place in this GPT-2")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(
                f"tensor {printable(min(names))} {problem}{more}: config.json needs other tensors"
            )

    def read(gpt2_name: str) -> Tensor:
        tensor = tensors[stored[gpt2_name]]
        if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            raise UserError(
                f"tensor {gpt2_name} is {tensor.dtype}: float64, float32, float16 or bfloat16 needed"
            )
        return tensor

    # Compare and convert the tensors.
    for name, shape in shapes.items():
        gpt2_name = _gpt2_name(name)
        if gpt2_name not in stored:
            continue  # the bias of a model without biases
        tensor = read(gpt2_name)
        is_transposed = name.endswith(_TRANSPOSED)
        if tensor.shape != (shape := shape[::-1] if is_transposed else shape):
            raise UserError(
                f"tensor {gpt2_name} has shape {tuple(tensor.shape)}, but config.json needs {shape}"
            )
        if _is_absent_bias(name, config):
            if tensor.any():
                raise UserError(f"tensor {gpt2_name} must be zero: config.json says bias = false")
            continue
        # copied: the file may be memory-mapped, and training writes into parameters
        tensor = tensor.T if is_transposed else tensor
        yield name, tensor.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    repeats_tied = "lm_head.weight" in stored  # as some files do
    if repeats_tied and not read("lm_head.weight").float().equal(read("wte.weight").float()):
        raise UserError(
            "tensor lm_head.weight differs from wte.weight: untied output weights are not supported"
        )


def gpt2_config(config: GPTConfig, end_of_text: int | None) -> dict[str, Any]:
    """The config.json that transformers and `config_from_gpt2` read; `end_of_text` is that token's id."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": None,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "vocab_size": config.vocab_size,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
        "gptmini": {"format_version": FORMAT_VERSION, "bias": config.bias, "attention": config.attention},
    }


def config_from_gpt2(values: Mapping[str, Any]) -> GPTConfig:
    """The GPTConfig of a GPT-2 directory's config.json, ours or anyone's.

    Raises UserError naming the key for what is not GPT-2 as GPT computes it, for sizes that no real model
    has, and for a format version that this version of gptmini does not know.
    """
    if isinstance(ours := values.get("gptmini"), dict):
        check_format_version(ours, "config.json")
    found = validate(_GPT2Config, values, "config.json")
    shape = found.model_dump(include={"n_layer", "n_head", "n_embd", "vocab_size"})
    shape |= {"context_length": found.n_positions, "dropout": found.resid_pdrop}
    shape |= {"bias": found.gptmini.bias, "attention": found.gptmini.attention}
    config = validate(GPTConfig, shape, "config.json")
    if found.n_inner not in (None, 4 * config.n_embd):
        raise UserError(f"config.json: n_inner = {found.n_inner}: must be 4 n_embd = {4 * config.n_embd}")
    return config


class _GptminiKeys(Section):
    """What GPTConfig knows and GPT-2 does not."""

    format_version: int = FORMAT_VERSION
    bias: bool = True
    attention: Attention = "eager"


class _GPT2Config(Section):
    """The keys of config.json that say what is computed, with transformers' defaults.

    The sizes are bounded so that a hostile file of a few bytes cannot ask for a causal mask of terabytes;
    the weights themselves must be in the files before memory is taken for them.
    """

    model_config = ConfigDict(extra="ignore")

    model_type: Literal["gpt2"]
    n_layer: Annotated[int, Field(ge=1, le=1024)]
    n_head: Annotated[int, Field(ge=1, le=1024)]
    n_embd: Annotated[int, Field(ge=1, le=2**17)]
    n_positions: Annotated[int, Field(ge=1, le=2**14)]
    vocab_size: Annotated[int, Field(ge=1, le=2**24)]
    n_inner: int | None = None
    activation_function: Literal["gelu_new", "gelu_pytorch_tanh"] = "gelu_new"
    layer_norm_epsilon: Annotated[float, Field(ge=1e-5, le=1e-5)] = 1e-5
    resid_pdrop: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    add_cross_attention: Literal[False] = False
    tie_word_embeddings: Literal[True] = True
    gptmini: _GptminiKeys = _GptminiKeys()


def _gpt2_name(name: str) -> str:
    """GPT-2's name of a parameter, less the `transformer.`: `blocks.0.ln_1.bias` is `h.0.ln_1.bias`."""
    first, _, rest = name.partition(".")
    return f"{_GPT2_NAMES[first]}.{rest}"


def _is_absent_bias(name: str, config: GPTConfig) -> bool:
    """Whether GPT-2 has this parameter and a model of this config does not."""
    return name.endswith(".bias") and not config.bias
