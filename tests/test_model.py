import copy
import math

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from gptmini.checkpoint.hf_gpt2 import to_gpt2
from gptmini.config import GPTConfig
from gptmini.errors import UserError
from gptmini.model import ATTENTION, GPT, additive, causal_mask, eager, sdpa

TINY = GPTConfig(vocab_size=61, n_layer=3, n_head=4, n_embd=32, context_length=24)


def tokens(batch: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randint(61, (batch, length), generator=torch.Generator().manual_seed(seed))


def transformers_twin(model: GPT) -> GPT2LMHeadModel:
    """transformers' GPT-2 of the same shape with the same weights."""
    c = model.config
    twin = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=c.vocab_size,
            n_positions=c.context_length,
            n_embd=c.n_embd,
            n_layer=c.n_layer,
            n_head=c.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    result = twin.load_state_dict(to_gpt2(model.state_dict(), c), strict=False)
    assert result.missing_keys == ["lm_head.weight"]
    assert not result.unexpected_keys
    return twin


@pytest.mark.parametrize("attention", sorted(ATTENTION))
@pytest.mark.parametrize("bias", [True, False])
def test_logits_equal_transformers_gpt2(attention, bias):
    torch.manual_seed(1)
    model = GPT(TINY.model_copy(update={"attention": attention, "bias": bias})).eval()
    for parameter in model.parameters():  # away from the initial zeros and ones, so that every term counts
        parameter.data += 0.1 * torch.randn_like(parameter)
    twin = transformers_twin(model).eval()
    with torch.inference_mode():
        difference = (model(tokens()) - twin(tokens()).logits).abs().max()
    assert difference < 1e-4


def test_one_adamw_step_equals_transformers():
    torch.manual_seed(2)
    model = GPT(TINY)
    twin = transformers_twin(model).train()
    inputs, targets = tokens(length=24)[:, :-1], tokens(length=24)[:, 1:]
    ours = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    theirs = F.cross_entropy(twin(inputs).logits.flatten(0, 1), targets.flatten())
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    for m, loss in ((model, ours), (twin, theirs)):
        # a large epsilon: with a small one AdamW's first step is the gradient's sign, which rounding decides
        optimizer = torch.optim.AdamW(m.parameters(), lr=1e-2, eps=1e-3)
        loss.backward()
        optimizer.step()
    expected = twin.state_dict()
    for name, value in to_gpt2(model.state_dict(), TINY).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("attention", sorted(ATTENTION))
def test_no_logit_depends_on_a_later_token(attention):
    torch.manual_seed(3)
    model = GPT(TINY.model_copy(update={"attention": attention}))
    seen = {}
    model.token_embedding.register_forward_hook(lambda m, i, out: seen.update(x=out))
    logits = model(tokens(batch=1))
    for t in (0, 7, 23):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), seen["x"], retain_graph=True)
        reach = gradient[0].abs().sum(dim=-1)  # (T,): how much position t listens to each position
        assert (reach[: t + 1] > 0).all()
        assert (reach[t + 1 :] == 0).all()


def with_gradients(attend, mask):
    torch.manual_seed(4)
    q, k, v = (torch.randn(2, 4, 9, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    y = attend(q, k, v, mask)
    return y, *torch.autograd.grad(y.square().sum(), (q, k, v))


def test_eager_equals_sdpa_forward_and_backward():
    mask = causal_mask(9, 9)
    for a, b in zip(with_gradients(eager, mask), with_gradients(sdpa, mask), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mask", [causal_mask(9, 9), causal_mask(9, 9).expand(2, 1, 9, 9)])
def test_additive_equals_eager_bit_for_bit_forward_and_backward(mask):
    for a, b in zip(with_gradients(eager, mask), with_gradients(additive, mask), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("attention", sorted(ATTENTION))
def test_attention_has_the_gradients_of_finite_differences(attention):
    torch.manual_seed(5)
    q, k, v = (torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(
        lambda *qkv: ATTENTION[attention](*qkv, causal_mask(4, 4), 0.0), (q, k, v)
    )


def test_eager_equals_sdpa_on_the_last_rows_of_the_mask():
    torch.manual_seed(5)
    q, k, v = torch.randn(2, 4, 2, 8), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)
    mask = causal_mask(2, 9)
    assert torch.equal(mask, causal_mask(9, 9)[-2:])
    torch.testing.assert_close(eager(q, k, v, mask), sdpa(q, k, v, mask))


def test_every_attention_function_is_a_config_choice():
    choices = GPTConfig.model_json_schema()["properties"]["attention"]["enum"]
    assert sorted(ATTENTION) == sorted(choices)


def test_loss_at_initialisation_is_near_ln_vocab_size():
    torch.manual_seed(6)
    model = GPT(TINY)
    loss = F.cross_entropy(model(tokens(batch=8)).flatten(0, 1), tokens(batch=8, seed=9).flatten())
    assert loss.item() == pytest.approx(math.log(TINY.vocab_size), abs=0.1)


def test_residual_projections_start_smaller_with_depth():
    model = GPT(TINY.model_copy(update={"n_embd": 128}))
    expected = 0.02 / math.sqrt(2 * TINY.n_layer)
    assert model.blocks[0].mlp.c_proj.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert model.blocks[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_one_batch_can_be_memorized():
    torch.manual_seed(7)
    model = GPT(TINY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    inputs, targets = tokens()[:, :-1], tokens()[:, 1:]
    for _ in range(100):
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_dropout_acts_only_while_training():
    torch.manual_seed(8)
    model = GPT(TINY.model_copy(update={"dropout": 0.5}))
    assert not torch.equal(model(tokens()), model(tokens()))
    model.eval()
    assert torch.equal(model(tokens()), model(tokens()))


def test_too_long_input_is_refused_with_both_lengths():
    with pytest.raises(UserError, match="25 tokens do not fit the model's context_length of 24"):
        GPT(TINY)(tokens(length=25))


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ((tokens(), tokens()), r"for a loss: F.cross_entropy\(model\(tokens\)"),
        ((tokens()[0],), r"tokens are \(24,\), not \(B, T\): give one text as tokens\[None\]"),
        ((tokens()[:, :0],), r"tokens are \(B, T\) = \(2, 0\): there are none, and one is needed"),
        ((tokens().float(),), r"tokens are torch.float32, not int64: call tokens.long\(\)"),
        (([[1, 2]],), "tokens are a list: make them a tensor with torch.tensor"),
    ],
)
def test_what_is_no_batch_of_tokens_is_refused_in_one_line(arguments, advice):
    with pytest.raises(UserError, match=advice) as error:
        GPT(TINY)(*arguments)
    assert "\n" not in str(error.value)


def test_int32_tokens_are_tokens():
    model = GPT(TINY)
    assert torch.equal(model(tokens().int()), model(tokens()))


def test_the_output_table_is_tied_and_only_parameters_are_saved():
    model = GPT(TINY)
    assert model.lm_head.weight is model.token_embedding.weight
    assert not list(model.buffers())


def far_from_initial(attention="eager"):
    """A small model in eval mode whose every term counts."""
    torch.manual_seed(9)
    model = GPT(TINY.model_copy(update={"attention": attention})).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def test_a_model_moved_off_the_meta_device_hides_the_future():
    model = far_from_initial()
    with torch.device("meta"):
        empty = GPT(TINY)
    empty.to_empty(device="cpu")
    empty.load_state_dict(model.state_dict())
    assert torch.equal(empty.eval()(tokens()), model(tokens()))


def test_a_deep_copy_gives_the_same_logits():
    model = far_from_initial()
    assert torch.equal(copy.deepcopy(model)(tokens()), model(tokens()))


@pytest.mark.parametrize("attention", sorted(ATTENTION))
def test_an_exported_program_agrees_at_every_length_up_to_the_context(attention):
    model = far_from_initial(attention)
    dynamic = {"tokens": {1: torch.export.Dim("T", max=TINY.context_length)}}
    program = torch.export.export(model, (tokens(length=7),), dynamic_shapes=dynamic).module()
    for length in (1, 2, 7, 23, 24):
        torch.testing.assert_close(program(tokens(length=length)), model(tokens(length=length)))


@pytest.mark.filterwarnings("ignore")  # of the exporters, about themselves
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("attention", sorted(ATTENTION))
def test_onnx_logits_agree_at_every_length_up_to_the_context(attention, dynamo, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    import onnxruntime

    model, path = far_from_initial(attention), tmp_path / "model.onnx"
    if dynamo:
        dynamic = {"tokens": {1: torch.export.Dim("T", max=TINY.context_length)}}
        torch.onnx.export(
            model, (tokens(length=7),), dynamo=True, dynamic_shapes=dynamic, verbose=False
        ).save(path)
    else:
        dynamic = {"tokens": {1: "T"}}
        names = {"input_names": ["tokens"], "dynamic_axes": dynamic}
        torch.onnx.export(model, (tokens(length=7),), path, dynamo=False, **names)
    session = onnxruntime.InferenceSession(path)
    for length in (3, 7, 24):
        (logits,) = session.run(None, {"tokens": tokens(length=length).numpy()})
        torch.testing.assert_close(
            torch.from_numpy(logits), model(tokens(length=length)), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("attention", sorted(ATTENTION))
def test_a_compiled_model_gives_the_same_logits_and_gradients(attention):
    model = far_from_initial(attention)
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
    for length in (24, 7):
        for m in (model, compiled):
            m.zero_grad()
            F.cross_entropy(
                m(tokens(length=length)).flatten(0, 1), tokens(length=length).flatten()
            ).backward()
        torch.testing.assert_close(compiled(tokens(length=length)), model(tokens(length=length)))
        for ours, theirs in zip(model.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
