"""The initial weights and the tokens: random weights, or those of `train.init_from`."""

import torch

from gptmini.checkpoint.hub import find_weights
from gptmini.checkpoint.store import open_weights
from gptmini.config import Config, GPTConfig, ModelConfig, TokenizerConfig
from gptmini.data.prepare import prepare
from gptmini.data.token_files import TokenData
from gptmini.data.tokenizers import Tokenizer
from gptmini.distributed.context import copy_full_
from gptmini.distributed.fsdp import build_model
from gptmini.errors import UserError
from gptmini.memory import explain_shortage
from gptmini.model import GPT
from gptmini.training.estimate import LOWER_MODEL, check_memory
from gptmini.training.runtime import DTYPES, Runtime


def build_model_and_data(
    config: Config, runtime: Runtime, quiet: bool, saved_tokenizer: Tokenizer | None = None
) -> tuple[GPT, TokenData]:
    """The model with its initial weights, and the tokenized corpus; the two share a tokenizer.

    With `train.init_from`, weights and tokenizer come from there, a folder or a name on the Hugging Face Hub
    (positions past a shorter `model.context_length` are dropped); otherwise the weights are random, decided
    by `train.seed` alone. With `saved_tokenizer`, that of a checkpoint whose weights are put in later,
    neither is looked for. Raises UserError if the config asks for another shape or tokenizer.
    """
    init_from, length = config.train.init_from, config.model.context_length
    name = f"train.init_from = {init_from}"  # in messages
    shape, parameters, tokenizer = None, None, saved_tokenizer

    # Refuse weights that do not fit before any text is tokenized.
    with runtime.distributed.local_main_first():  # all ranks, also where other machines hold no checkpoint
        folder = find_weights(init_from) if init_from is not None and saved_tokenizer is None else None
    if folder is not None:
        shape, parameters, tokenizer = open_weights(folder)
        _check_shape(config.model, shape, name)
        if tokenizer is not None:
            _check_tokenizer(config.tokenizer, tokenizer, name)

    with runtime.distributed.local_main_first():  # one rank writes the token files, the others find them
        data = prepare(config.data, tokenizer or config.tokenizer, length, quiet)
    vocab_size = data.tokenizer.vocab_size
    if shape is not None and shape.vocab_size != vocab_size:
        raise UserError(f"the tokenizer's vocab_size = {vocab_size}, but {name} has {shape.vocab_size}")

    distributed = runtime.distributed
    model_config = GPTConfig(vocab_size=vocab_size, **config.model.model_dump())
    if runtime.device.type == "cpu":
        ranks = distributed.world_size, distributed.local_world_size
        check_memory(config, model_config, runtime.precision, *ranks)
    torch.manual_seed(config.train.seed)
    with explain_shortage(LOWER_MODEL):
        model = build_model(model_config, distributed, runtime.device, DTYPES[runtime.precision])
    # Parameters come one by one, so that a rank of a sharded model never holds all of them.
    ours = dict(model.named_parameters())
    with torch.no_grad():
        for parameter_name, value in parameters or ():
            rows = length if parameter_name == "position_embedding.weight" else None
            copy_full_(ours[parameter_name], value[:rows])
    return model, data


def _check_shape(config: ModelConfig, found: GPTConfig, name: str) -> None:
    fixed = ("n_layer", "n_head", "n_embd", "bias")
    if changed := [key for key in fixed if getattr(config, key) != getattr(found, key)]:
        given = ", ".join(f"model.{key} = {getattr(config, key)}" for key in changed)
        needed = ", ".join(str(getattr(found, key)) for key in changed)
        raise UserError(f"{given}, but {name} has {needed}")
    if config.context_length > found.context_length:
        raise UserError(
            f"model.context_length = {config.context_length}: {name} has positions for "
            f"{found.context_length} tokens only"
        )


def _check_tokenizer(config: TokenizerConfig, found: Tokenizer, name: str) -> None:
    """UserError if the config asks for another tokenizer than the weights were trained with."""
    given = config.model_dump(include=config.model_fields_set, exclude_none=True)
    for key, value in given.items():
        brought = getattr(found, key, False)  # byte_fallback, which only chars has
        if value != brought:
            raise UserError(
                f"tokenizer.{key} = {value}, but {name} brings a tokenizer with {key} = {brought}, "
                "and the weights mean nothing with another: leave tokenizer out"
            )


def resolve_tokenizer(config: Config, tokenizer: Tokenizer) -> Config:
    """The config with the tokenizer that `train.init_from` brought, so that config.yaml records it."""
    if config.train.init_from is None:
        return config
    values: dict[str, object] = {
        "kind": tokenizer.kind,
        "byte_fallback": getattr(tokenizer, "byte_fallback", False),
    }
    if tokenizer.kind == "bpe":
        values["vocab_size"] = tokenizer.vocab_size
    return config.model_copy(update={"tokenizer": TokenizerConfig.model_validate(values)})
