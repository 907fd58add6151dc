import copy

import pytest
import torch

from gptmini.config import GPTConfig
from gptmini.cpu_linear import speed_up
from gptmini.generate import generate
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


@pytest.mark.parametrize("n_embd", [64, 30])  # 30: rows that the int8 kernel's blocks do not fit
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("weights", "tolerance"), [("fp32", 1e-5), ("bf16", 0.03), ("int8", 0.03)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 1), (5, 32)])
def test_logits_stay_within_the_rounding_of_the_weights(n_embd, bias, weights, tolerance, shape):
    model = build(n_embd, bias)
    laid_out = speed_up(copy.deepcopy(model), weights)
    with torch.inference_mode():
        expected, got = model(tokens(*shape)), laid_out(tokens(*shape))
    assert got.dtype == torch.float32
    assert ((got - expected).norm() / expected.norm()) < tolerance
    assert weights == "fp32" or not torch.equal(got, expected)  # something was rounded


def test_float32_layers_give_the_same_text():
    model = build()
    laid_out = speed_up(copy.deepcopy(model))
    for options in ({"temperature": 0.0}, {"seed": 3}, {"seed": 4, "top_p": 0.8}):
        first, second = (generate(m, tokens(3, 5), max_new_tokens=80, **options) for m in (model, laid_out))
        assert torch.equal(first, second)


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_rounded_weights_write_a_text_of_the_asked_length(weights):
    laid_out = speed_up(build(), weights)
    assert generate(laid_out, tokens(2, 5), max_new_tokens=50, seed=0).shape == (2, 55)
