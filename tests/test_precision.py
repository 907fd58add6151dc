"""Weights in 16 and 8 bits: what rounding them changes, and what such a model refuses."""

import copy

import pytest
import torch
from torch.nn import functional as F

from gptmini.config import GPTConfig
from gptmini.errors import UserError
from gptmini.generation.generate import generate
from gptmini.generation.precision import set_precision
from gptmini.model import GPT


def build(n_embd=64, bias=True):
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(vocab_size=97, n_layer=2, n_head=2, n_embd=n_embd, context_length=32, bias=bias)
    ).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def tokens(batch, length):
    return torch.randint(97, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.03), ("int8", 0.03)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 1), (5, 32)])
def test_logits_stay_within_the_rounding_of_the_weights(bias, precision, tolerance, shape):
    model = build(bias=bias)
    rounded = set_precision(copy.deepcopy(model), precision)
    with torch.inference_mode():
        expected, got = model(tokens(*shape)), rounded(tokens(*shape))
    assert got.dtype == torch.float32
    assert ((got - expected).norm() / expected.norm()) < tolerance
    assert precision == "fp32" or not torch.equal(got, expected)  # something was rounded


@pytest.mark.parametrize("in_hardware", [True, False])
def test_bfloat16_layers_give_the_same_with_and_without_bfloat16_products(monkeypatch, in_hardware):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: in_hardware)
    model = build()
    rounded = set_precision(copy.deepcopy(model), "bf16")
    with torch.inference_mode():
        expected, got = model(tokens(5, 32)), rounded(tokens(5, 32))
    assert ((got - expected).norm() / expected.norm()) < 0.03


def test_each_output_of_int8_has_its_own_scale_and_no_weight_is_off_by_more_than_half_a_step():
    linear = torch.nn.Linear(50, 3)
    with torch.no_grad():
        linear.weight.mul_(torch.tensor([[1.0], [1000.0], [0.0]]))
    rounded = set_precision(build(), "int8").lm_head
    rounded = type(rounded)(linear, "int8")
    step = linear.weight.abs().amax(dim=1, keepdim=True) / 127
    widened = rounded.weight * rounded.scale[:, None]
    assert ((widened - linear.weight).abs() <= 0.501 * step).all()


def test_a_float32_model_trains_saves_and_copies_as_the_model_it_was_made_of():
    plain, fast = build(), set_precision(build())
    assert fast.lm_head.weight is fast.token_embedding.weight
    assert list(fast.state_dict()) == list(plain.state_dict())
    for model in (plain, fast):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            generate(model, tokens(1, 3), max_new_tokens=2)
            optimizer.zero_grad()
            F.cross_entropy(model(tokens(2, 9)).flatten(0, 1), tokens(2, 9).flatten()).backward()
            optimizer.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], value, atol=1e-4, rtol=1e-4)
    expected = generate(fast, tokens(1, 3), max_new_tokens=40, temperature=0)
    copied = copy.deepcopy(fast)
    plain.load_state_dict(fast.state_dict())
    with torch.no_grad():
        fast.lm_head.weight.zero_()
    for model in (copied, plain):
        assert torch.equal(generate(model, tokens(1, 3), max_new_tokens=40, temperature=0), expected)
    assert not torch.equal(generate(fast, tokens(1, 3), max_new_tokens=40, temperature=0), expected)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_rounded_weights_are_neither_trained_nor_saved(precision):
    model = set_precision(build(), precision)
    with pytest.raises(UserError, match="cannot be saved: load the model with precision"):
        model.state_dict()
    assert not model(tokens(1, 1)).requires_grad
    model.train()
    with pytest.raises(UserError, match="cannot be trained: load the model with precision"):
        model(tokens(1, 3))
    assert generate(model, tokens(1, 3), max_new_tokens=2, seed=0).shape == (1, 5)
