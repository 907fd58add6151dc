"""GPT's parameters as the tensors and config.json of a GPT-2 directory; transformers is the oracle."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gptmini.checkpoint.hf_gpt2 import (
    config_from_gpt2,
    gpt2_config,
    parameter_shapes,
    parameters_from_gpt2,
    to_gpt2,
)
from gptmini.config import GPTConfig
from gptmini.errors import UserError
from gptmini.model import GPT

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=8, context_length=6, vocab_size=11)


def gpt2_tensors(config=CONFIG):
    return to_gpt2(GPT(config).state_dict(), config)


def from_gpt2(tensors, config):
    return dict(parameters_from_gpt2(tensors, config))


def config_values(**changed):
    return {**gpt2_config(CONFIG, 0), **changed}


@pytest.mark.parametrize("bias", [True, False])
def test_the_shapes_are_those_of_the_models_parameters(bias):
    model = GPT(CONFIG.model_copy(update={"bias": bias}))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    expected = {name: s for name, s in parameter_shapes(CONFIG).items() if bias or not name.endswith("bias")}
    assert shapes == expected


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_come_back_as_they_went(bias):
    config = CONFIG.model_copy(update={"bias": bias})
    state = dict(GPT(config).named_parameters())
    back = from_gpt2(to_gpt2(state, config), config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert all(tensor.is_contiguous() for tensor in back.values())


def test_names_and_shapes_are_those_that_transformers_saves():
    model = GPT2LMHeadModel(GPT2Config(**gpt2_config(CONFIG, 0)))
    theirs = {name: p.shape for name, p in model.named_parameters()}
    assert {name: tensor.shape for name, tensor in gpt2_tensors().items()} == theirs


def test_a_model_without_biases_stores_zeros_for_them():
    config = CONFIG.model_copy(update={"bias": False})
    tensors = gpt2_tensors(config)
    biases = [tensor for name, tensor in tensors.items() if name.endswith("bias")]
    assert len(biases) == 2 * 6 + 1
    assert not any(bias.any() for bias in biases)
    tensors["transformer.h.1.ln_2.bias"][3] = 1e-9
    with pytest.raises(UserError, match=r"h\.1\.ln_2\.bias must be zero: config\.json says bias = false"):
        from_gpt2(tensors, config)


def test_tensors_of_older_files_are_understood():
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in gpt2_tensors().items()}
    tensors |= {"h.0.attn.bias": torch.ones(1, 1, 6, 6), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    assert torch.equal(from_gpt2(tensors, CONFIG)["token_embedding.weight"], tensors["wte.weight"])


def test_half_precision_becomes_float32():
    for dtype in (torch.float16, torch.bfloat16):
        tensors = {name: tensor.to(dtype) for name, tensor in gpt2_tensors().items()}
        state = from_gpt2(tensors, CONFIG)
        assert {tensor.dtype for tensor in state.values()} == {torch.float32}
        assert torch.equal(state["ln_f.weight"].to(dtype), tensors["transformer.ln_f.weight"])


def remove(tensors):
    del tensors["transformer.h.1.ln_1.weight"]


def add(tensors):
    tensors["transformer.h.2.ln_1.weight"] = torch.ones(8)


def reshape(tensors):
    tensors["transformer.h.0.mlp.c_fc.weight"] = torch.zeros(32, 8)


def untie(tensors):
    tensors["lm_head.weight"] = torch.zeros(11, 8)


def repeat(tensors):
    tensors["wte.weight"] = tensors["transformer.wte.weight"]


def count(tensors):
    tensors["transformer.wpe.weight"] = torch.zeros(6, 8, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove, r"tensor h\.1\.ln_1\.weight is missing"),
        (add, r"tensor h\.2\.ln_1\.weight has no place"),
        (reshape, r"h\.0\.mlp\.c_fc\.weight has shape \(32, 8\), but config\.json needs \(8, 32\)"),
        (untie, r"untied output weights are not supported"),
        (repeat, r"twice"),
        (count, r"wpe\.weight is torch\.int64"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message):
    tensors = gpt2_tensors()
    change(tensors)
    with pytest.raises(UserError, match=message) as refusal:
        from_gpt2(tensors, CONFIG)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("changes", [{}, {"bias": False, "attention": "sdpa", "dropout": 0.25}])
def test_a_config_comes_back_as_it_went(changes):
    config = CONFIG.model_copy(update=changes)
    assert config_from_gpt2(gpt2_config(config, end_of_text=None)) == config


def test_a_config_of_transformers_is_understood():
    theirs = GPT2Config(
        n_layer=2, n_head=2, n_embd=8, n_positions=6, vocab_size=11, bos_token_id=0, eos_token_id=0
    )
    assert config_from_gpt2(theirs.to_dict()) == CONFIG.model_copy(update={"dropout": 0.1})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "llama"}, "model_type = 'llama': needs gpt2"),
        ({"activation_function": "relu"}, "activation_function = 'relu'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = false"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = true"),
        ({"scale_attn_weights": False}, "scale_attn_weights = false"),
        ({"add_cross_attention": True}, "add_cross_attention = true"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon = 1e-06"),
        ({"n_inner": 16}, "n_inner = 16: must be 4 n_embd = 32"),
        ({"n_head": 3}, "n_embd = 8 must be a multiple of n_head = 3"),
        ({"n_layer": 10**9}, "n_layer = 1000000000"),
        ({"n_embd": 10**12}, "n_embd = 1000000000000"),
        ({"n_positions": 10**6}, "n_positions = 1000000"),
        ({"vocab_size": -1}, "vocab_size = -1"),
        ({"vocab_size": "11"}, "vocab_size = '11'"),
        ({"n_layer": True}, "n_layer = true"),
        ({"n_layer": None}, "n_layer = null"),
        ({"resid_pdrop": 1.0}, "resid_pdrop = 1.0"),
        ({"gptmini": {"format_version": 2}}, "format version 2 is not known to this gptmini"),
        ({"gptmini": {"format_version": 1, "biass": True}}, "unknown key gptmini.biass"),
        ({"gptmini": 1}, "gptmini = 1"),
    ],
)
def test_a_config_that_gpt_does_not_compute_is_refused(changed, message):
    with pytest.raises(UserError) as refusal:
        config_from_gpt2(config_values(**changed))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_config_without_sizes_is_refused():
    values = config_values()
    del values["n_embd"]
    with pytest.raises(UserError, match=r"config\.json: n_embd is missing"):
        config_from_gpt2(values)
