import copy

import pytest
import torch
from torch.nn import functional as F

from gptmini.config import GPTConfig
from gptmini.errors import UserError
from gptmini.generation.cpu_linear import optimize_for_cpu
from gptmini.generation.generate import generate
from gptmini.generation.kv_cache import KVCache
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
    laid_out = optimize_for_cpu(copy.deepcopy(model), weights)
    with torch.inference_mode():
        expected, got = model(tokens(*shape)), laid_out(tokens(*shape))
    assert got.dtype == torch.float32
    assert ((got - expected).norm() / expected.norm()) < tolerance
    assert weights == "fp32" or not torch.equal(got, expected)  # something was rounded


@pytest.mark.parametrize("in_hardware", [True, False])
def test_bfloat16_layers_give_the_same_with_and_without_bfloat16_products(monkeypatch, in_hardware):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: in_hardware)
    model = build()
    rounded = optimize_for_cpu(copy.deepcopy(model), "bf16")
    for shape in ((1, 1), (1, 9), (3, 1), (5, 32)):
        with torch.inference_mode():
            expected, got = model(tokens(*shape)), rounded(tokens(*shape))
        assert ((got - expected).norm() / expected.norm()) < 0.03


def test_int8_logits_are_the_same_by_the_kernels_for_few_rows_and_for_many():
    model = optimize_for_cpu(build(), "int8")
    text = tokens(1, 12)
    cache = KVCache(model, 1, 12)
    with torch.inference_mode():
        one_by_one = torch.cat([model(text[:, t : t + 1], cache) for t in range(12)], dim=1)
        torch.testing.assert_close(one_by_one, model(text), atol=1e-4, rtol=1e-4)


def test_a_model_made_faster_can_be_called_outside_of_inference_mode():
    for weights in ("fp32", "bf16", "int8"):
        model = optimize_for_cpu(build(), weights)
        generate(model, tokens(1, 3), max_new_tokens=2)
        assert model(tokens(1, 1)).requires_grad == (weights == "fp32")
        assert not model.training


def test_float32_layers_train_save_and_copy_as_the_model_they_were_made_of():
    plain, fast = build(), optimize_for_cpu(build())
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


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_rounded_weights_are_neither_trained_nor_saved(weights):
    model = optimize_for_cpu(build(), weights)
    with pytest.raises(UserError, match="cannot be saved: load the model with precision"):
        model.state_dict()
    model.train()
    with pytest.raises(UserError, match="cannot be trained: load the model with precision"):
        model(tokens(1, 3))
    assert generate(model, tokens(1, 3), max_new_tokens=2, seed=0).shape == (1, 5)


def test_float32_layers_give_the_same_text():
    model = build()
    laid_out = optimize_for_cpu(copy.deepcopy(model))
    for options in ({"temperature": 0.0}, {"seed": 3}, {"seed": 4, "top_p": 0.8}):
        first, second = (generate(m, tokens(3, 5), max_new_tokens=80, **options) for m in (model, laid_out))
        assert torch.equal(first, second)


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_rounded_weights_write_a_text_of_the_asked_length(weights):
    laid_out = optimize_for_cpu(build(), weights)
    assert generate(laid_out, tokens(2, 5), max_new_tokens=50, seed=0).shape == (2, 55)
