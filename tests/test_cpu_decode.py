"""The compiled step against PyTorch and against the definition of what is generated."""

import copy
import importlib.util
import os
import signal
import sys

import pytest
import torch
from torch.nn import functional as F

from gptmini.config import GPTConfig
from gptmini.errors import DivergedError
from gptmini.generation.attention import record_attention
from gptmini.generation.cpu_decode import compiled_step
from gptmini.generation.generate import generate, generate_by_definition, generate_tokens
from gptmini.generation.kv_cache import KVCache, last_logits
from gptmini.generation.precision import set_precision
from gptmini.generation.sampling import Sampling
from gptmini.model import GPT

pytest.importorskip("numba", reason="the compiled step needs numba")
CONTEXT = 24


def build(precision="fp32", **changed):
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": CONTEXT, **changed}
    model = GPT(GPTConfig(**shape)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return set_precision(model, precision)


def prompts(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(97, (length,), generator=generator).tolist() for length in lengths]


def logits(model, windows, step):
    """Of three tokens, one after the other, after these windows: (3, B, V)."""
    cache = KVCache(model, len(windows), CONTEXT)
    with torch.inference_mode():
        return torch.stack(
            [last_logits(model, [w + [5] * n for w in windows], cache, step) for n in range(3)]
        )


SHAPES = [{}, {"bias": False}, {"n_embd": 4, "n_head": 1}, {"n_embd": 30, "n_head": 3, "vocab_size": 101}]


@pytest.mark.parametrize("changed", SHAPES, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_logits_are_those_of_pytorch(precision, changed, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # it rounds the inputs too
    model = build(precision, **changed)
    step = compiled_step(model)
    for lengths in ([5], [4, 4, 4], [1, 9, 9, 2], [7] * 16):
        windows = prompts(*lengths)
        got, expected = logits(model, windows, step), logits(model, windows, None)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        assert not torch.equal(got, expected)  # it was not PyTorch that computed them


@pytest.mark.parametrize("sampler", [{"temperature": 0.0}, {"top_p": 0.9, "seed": 3}], ids=str)
@pytest.mark.parametrize("B", [1, 3, 16])
def test_text_equals_the_definition_past_the_context(B, sampler):
    model, tokens = build(), torch.tensor(prompts(*[5] * B))
    expected = generate_by_definition(model, tokens, 3 * CONTEXT, Sampling(**sampler))
    assert torch.equal(generate(model, tokens, max_new_tokens=3 * CONTEXT, **sampler), expected)


def test_rows_of_unequal_length_that_end_one_by_one_have_the_text_that_they_have_alone():
    model, rows = build(), prompts(3, 8, 20, CONTEXT, 1)
    options = {"max_new_tokens": 2 * CONTEXT, "temperature": 0, "stop_token": 7}
    assert generate(model, rows, **options) == [generate(model, [row], **options)[0] for row in rows]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_number_of_threads_does_not_change_a_bit(precision):
    model, before = build(precision), torch.get_num_threads()
    step, windows = compiled_step(model), prompts(4, 4, 4)
    cache = KVCache(model, 3, CONTEXT)
    with torch.inference_mode():
        last_logits(model, windows, cache, step)
        found = []
        try:
            for threads in (1, 2, 2):
                torch.set_num_threads(threads)
                found.append(step([5, 6, 7], copy.deepcopy(cache)))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found)


def test_without_numba_the_text_is_the_same(monkeypatch):
    model, rows = build(), prompts(3, 8)
    expected = generate(model, rows, max_new_tokens=2 * CONTEXT, temperature=0)
    monkeypatch.setitem(sys.modules, "numba", None)
    assert compiled_step(model) is None
    assert generate(model, rows, max_new_tokens=2 * CONTEXT, temperature=0) == expected


def test_a_model_that_computes_something_else_is_left_to_pytorch():
    class Tuned(GPT):
        pass

    hooked, frozen = build(), build()
    hooked.blocks[1].mlp.register_forward_hook(lambda *args: None)
    frozen.requires_grad_(False)
    assert compiled_step(frozen) is not None
    for model in (Tuned(frozen.config).eval(), hooked, build().double(), build().to("meta"), build().train()):
        assert compiled_step(model) is None
    with record_attention(frozen):
        assert compiled_step(frozen) is None
    with torch.autocast("cpu"):
        assert compiled_step(frozen) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_generates_too():
    model, rows = build(), prompts(3)
    expected = generate(model, rows, max_new_tokens=4, temperature=0)  # its threads run from here on
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as a fork of PyTorch needs it
    try:
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            os._exit(generate(model, rows, max_new_tokens=4, temperature=0) != expected)
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        torch.set_num_threads(before)


def test_weights_that_change_while_a_text_is_written_are_seen():
    model, (prompt,) = build(), prompts(4)
    steps = generate_tokens(model, [prompt], Sampling(temperature=0), max_new_tokens=9)
    for _ in range(3):
        next(steps)
    with torch.no_grad():
        model.ln_f.weight.zero_()
        model.ln_f.bias.copy_(100 * model.token_embedding.weight[42])
    assert [token for _, token, _ in steps] == [42] * 6


def test_weights_that_are_not_finite_are_reported():
    for name in ("blocks.1.mlp.c_fc.weight", "blocks.0.attn.c_attn.weight", "ln_f.bias"):
        model = build()
        model.get_parameter(name).data.view(-1)[0] = torch.nan
        with pytest.raises(DivergedError, match="no finite logits"):
            generate(model, prompts(1), max_new_tokens=2)


def test_gelu_is_pytorchs_for_small_and_large_inputs():
    from gptmini.generation.cpu_kernels import multiply

    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, 1e4, 1e-8, -1e-8])])[None]
    n = x.shape[1]
    ones, zeros = torch.ones(n).numpy(), torch.zeros(n).numpy()
    got = torch.from_numpy(multiply(torch.ones(1, 1).numpy(), x.T.contiguous().numpy(), ones, zeros, True))
    torch.testing.assert_close(got, F.gelu(x, approximate="tanh"), atol=1e-6, rtol=1e-6)


def test_where_nothing_can_be_written_it_compiles_for_one_process(monkeypatch):
    from numba.core import caching

    from gptmini.generation import cpu_kernels

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    spec = importlib.util.spec_from_file_location("uncached", cpu_kernels.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x, ones = torch.randn(2, 8), torch.ones(8).numpy()
    got = torch.from_numpy(module.layer_norm(x.numpy(), ones, 0 * ones))
    torch.testing.assert_close(got, F.layer_norm(x, (8,)), atol=1e-6, rtol=1e-5)
