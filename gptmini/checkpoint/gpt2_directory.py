"""Save and read a Hugging Face GPT-2 directory: config.json, model.safetensors and the tokenizer's files."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gptmini import atomic_io
from gptmini.checkpoint.hf_gpt2 import (
    config_from_gpt2,
    empty_model,
    gpt2_config,
    parameters_from_gpt2,
    to_gpt2,
)
from gptmini.checkpoint.safetensors_io import FileContent, TensorFiles, file_chunks, json_bytes, read_json
from gptmini.config import GPTConfig
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import DamagedError, UserError
from gptmini.model import GPT
from gptmini.paths import path_argument


def save(path: str | Path, model: nn.Module, tokenizer: Tokenizer | None = None) -> None:
    """Write a model as a new Hugging Face GPT-2 directory: gptmini, transformers and their like load it.

    `model` is a GPT, as built, trained or loaded, also compiled or wrapped in DataParallel or
    DistributedDataParallel; its weights are stored in float32. `path` appears whole or not at all.

    Raises UserError where `path` exists, or `model` is no GPT, has lost its float weights (int8), or is
    sharded over ranks; OSError if the disk fails.
    """
    target = path_argument(path, "save takes a path first")
    if os.path.lexists(target):
        raise UserError(f"{target}: exists already; choose another folder")
    gpt = unwrap(model)
    weights = _float_weights(gpt)
    if tokenizer is not None:
        check_vocabulary(tokenizer, gpt.config.vocab_size)
    atomic_io.make_folder(target.absolute().parent)
    with atomic_io.new_folder(target) as folder:
        for name, content in gpt2_files(weights, gpt.config, tokenizer).items():
            atomic_io.create_file(folder / name, file_chunks(content))


def gpt2_files(
    weights: Mapping[str, Tensor], config: GPTConfig, tokenizer: Tokenizer | None
) -> dict[str, FileContent]:
    """The files of a GPT-2 directory by name."""
    end_of_text = None if tokenizer is None else tokenizer.end_of_text
    start_token = None if tokenizer is None else tokenizer.start_token
    # read by transformers' generate
    generation = {"_from_model_config": True, "bos_token_id": start_token, "eos_token_id": end_of_text}
    return {
        "config.json": json_bytes(gpt2_config(config, end_of_text)),
        "generation_config.json": json_bytes(generation),
        "model.safetensors": to_gpt2(weights, config),
        **({} if tokenizer is None else tokenizer.files(config.context_length)),
    }


def read_gpt2(folder: Path) -> tuple[GPTConfig, Iterator[tuple[str, Tensor]]]:
    """Config and parameters of a GPT-2 directory, each parameter read when it is asked for.

    Raises UserError or DamagedError, also while the parameters are read.
    """
    try:
        config = config_from_gpt2(read_json(folder / "config.json"))
        tensors = TensorFiles(_weight_files(folder))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None

    def read() -> Iterator[tuple[str, Tensor]]:
        try:
            yield from only_finite(parameters_from_gpt2(tensors, config), folder)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None

    return config, read()


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise UserError where a token of text has no row in the embedding; special tokens may lack theirs."""
    if any(tokenizer.tokens[vocab_size:]):
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's embedding only {vocab_size} "
            "rows: they do not belong together, so give the tokenizer that the model was trained with"
        )


def drop_padding(
    config: GPTConfig, parameters: Iterable[tuple[str, Tensor]], tokenizer: Tokenizer
) -> tuple[GPTConfig, Iterator[tuple[str, Tensor]]]:
    """The same model without the rows that pad its embedding past the tokenizer, whose ids are no tokens."""
    vocab_size = min(config.vocab_size, tokenizer.vocab_size)
    cut = config.vocab_size - vocab_size
    return config.model_copy(update={"vocab_size": vocab_size}), (
        (name, value[:vocab_size].clone() if cut and name == "token_embedding.weight" else value)
        for name, value in parameters
    )


def only_finite(parameters: Iterable[tuple[str, Tensor]], source: object) -> Iterator[tuple[str, Tensor]]:
    """The same parameters; DamagedError, naming `source`, at the first that is NaN or infinite somewhere."""
    for name, values in parameters:
        if not torch.stack(values.aminmax()).isfinite().all():  # takes no memory, as isfinite() would
            raise DamagedError(
                f"{source}: parameter {name} holds NaN or infinite weights: diverged or damaged"
            )
        yield name, values


def build_model(config: GPTConfig, parameters: Iterable[tuple[str, Tensor]]) -> GPT:
    """A GPT with these parameters, the tied output weights left out."""
    model, state = empty_model(config), dict(parameters)
    state["lm_head.weight"] = state["token_embedding.weight"]
    model.load_state_dict(state, assign=True)  # replaces the empty parameters, copies nothing
    model.lm_head.weight = model.token_embedding.weight  # tied again
    return model


def unwrap(model: nn.Module) -> GPT:
    """The GPT inside DistributedDataParallel, DataParallel or torch.compile; UserError if there is none."""
    inner: object = model
    while inner is not None and not isinstance(inner, GPT):
        inner = getattr(inner, "module", getattr(inner, "_orig_mod", None))
    if inner is None:
        raise UserError(f"model is a {type(model).__name__}, but must be a gptmini.GPT")
    return inner


def _float_weights(model: GPT) -> dict[str, Tensor]:
    """The parameters that GPT-2's files need, as float32; UserError where the model has others."""
    weights = {name.replace("_orig_mod.", ""): p.detach() for name, p in model.named_parameters()}
    needed = {name for name, _ in empty_model(model.config).named_parameters()}
    if needed - weights.keys():
        raise UserError("the model's weights are rounded for generating: load it with precision fp32 to save")
    if extra := sorted(weights.keys() - needed):
        raise UserError(f"parameter {extra[0]} has no place in GPT-2")
    if any(hasattr(weight, "full_tensor") for weight in weights.values()):
        raise UserError("the model is sharded over ranks: train saves it, and gptmini.load loads it whole")
    if lost := [name for name, weight in weights.items() if not weight.isfinite().all()]:
        raise UserError(f"parameter {lost[0]} holds NaN or infinite weights, which load would refuse")
    return {name: weight.float() for name, weight in weights.items()}


def _weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that its index names."""
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        raise UserError("no model.safetensors in it (weights in pickle files are never loaded)")
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise DamagedError(f"{index}: has no weight_map")
    for shard in shards.values():
        # a plain name: a path could lead out of the folder
        if not isinstance(shard, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", shard):
            raise DamagedError(f"{index}: {shard!r:.100} is not the name of a safetensors file beside it")
    return [folder / shard for shard in sorted(set(shards.values()))]
