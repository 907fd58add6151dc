"""Recorded attention weights: right ones, of every layer, and the model as it was before and after."""

import copy

import pytest
import torch

import gptmini
from gptmini.config import GPTConfig
from gptmini.errors import UserError
from gptmini.generation.attention import record_attention
from gptmini.generation.generate import generate
from gptmini.generation.precision import set_precision
from gptmini.model import ATTENTION, GPT


def build(attention="eager"):
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=31, n_layer=3, n_head=2, n_embd=16, context_length=12, attention=attention, dropout=0.1
    )
    model = GPT(config)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def tokens(T=7):
    return torch.randint(31, (2, T), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", sorted(ATTENTION))
def test_weights_are_those_by_which_the_values_are_averaged(attention):
    model, inputs = build(attention).eval(), []
    for block in model.blocks:
        block.attn.register_forward_hook(lambda module, args, y: inputs.append((module, args[0], y)))
    plain = model(tokens())
    inputs.clear()
    with gptmini.record_attention(model) as weights:
        assert torch.equal(model(tokens()), plain)
    assert [w.shape for w in weights] == [(2, 2, 7, 7)] * 3
    for (layer, x, y), w in zip(inputs, weights, strict=True):
        torch.testing.assert_close(w.sum(-1), torch.ones(2, 2, 7))
        assert not w.triu(1).any()
        v = layer.c_attn(x)[..., 32:].view(2, 7, 2, 8).transpose(1, 2)
        mixed = layer.c_proj((w @ v).transpose(1, 2).reshape(2, 7, 16))
        torch.testing.assert_close(mixed, y, atol=1e-5, rtol=1e-4)


def test_gradients_flow_through_a_recorded_pass_and_weights_hold_no_graph():
    model, gradients = build().eval(), []
    for record in (False, True):
        model.zero_grad()
        if record:
            with record_attention(model) as weights:
                model(tokens()).square().sum().backward()
            assert not any(w.requires_grad for w in weights)
        else:
            model(tokens()).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for without, recorded in zip(*gradients, strict=True):
        assert torch.equal(without, recorded)


def test_the_model_is_as_before_also_after_an_error_and_blocks_may_nest():
    model = build().eval()
    before = [block.attn.attend for block in model.blocks]
    with record_attention(model) as outer, record_attention(model) as inner:
        model(tokens())
    with pytest.raises(UserError), record_attention(model):
        model(tokens(13))
    assert [block.attn.attend for block in model.blocks] == before
    assert all(torch.equal(a, b) for a, b in zip(outer, inner, strict=True))
    model(tokens())
    assert len(outer) == len(inner) == 3


def test_generating_records_a_pass_for_the_prompt_and_one_for_each_token():
    model = set_precision(build().eval())
    with record_attention(torch.nn.DataParallel(model)) as weights:
        text = generate(model, tokens(4), max_new_tokens=3, seed=0)
    assert [w.shape[-2:] for w in weights[::3]] == [(3, 3), (1, 4), (1, 5), (1, 6)]
    with record_attention(model) as whole, torch.inference_mode():
        model(text[:, :-1])
    for layer in range(3):
        torch.testing.assert_close(weights[9 + layer][:, :, 0], whole[layer][:, :, 5], atol=1e-5, rtol=1e-4)


def test_a_copy_made_in_the_block_stops_recording_with_it():
    model = build().eval()
    with record_attention(model) as weights:
        twin = copy.deepcopy(model)
    twin(tokens())
    assert weights == []
