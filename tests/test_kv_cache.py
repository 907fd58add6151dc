"""The cache against the whole forward pass: every way of cutting a text into steps gives the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptmini.config import GPTConfig
from gptmini.generation.kv_cache import KVCache
from gptmini.model import ATTENTION, GPT

CONTEXT, VOCAB = 12, 31


def build(attention="eager"):
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=VOCAB, n_layer=2, n_head=2, n_embd=16, context_length=CONTEXT, attention=attention
    )
    model = GPT(config).eval()
    for parameter in model.parameters():  # away from the initial zeros and ones
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


MODELS = {attention: build(attention) for attention in sorted(ATTENTION)}


def tokens(batch, length, seed=0):
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, CONTEXT), min_size=1, max_size=CONTEXT), st.sampled_from(sorted(MODELS)))
def test_a_text_read_in_any_steps_has_the_logits_of_one_pass(steps, attention):
    model = MODELS[attention]
    text = tokens(3, CONTEXT)
    cache = KVCache(model, 3, CONTEXT)
    start, pieces = 0, []
    with torch.inference_mode():
        for step in steps:
            if piece := text[:, start : start + step].shape[1]:
                pieces.append(model(text[:, start : start + piece], cache))
                start += piece
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(text[:, :start]), atol=1e-5, rtol=1e-4)
    assert cache.length == start


@pytest.mark.parametrize("attention", sorted(MODELS))
@pytest.mark.parametrize("lengths", [[1, 5, 3], [7, 2, 2], [0, 4, 1], [8, 9, 10]])
def test_rows_of_unequal_length_continue_as_each_would_alone(attention, lengths):
    model = MODELS[attention]
    text = tokens(3, CONTEXT)
    cache = KVCache(model, 3, CONTEXT)
    with torch.inference_mode():
        for b, length in enumerate(lengths):
            part = cache.select(slice(b, b + 1))
            if length:
                model(text[b : b + 1, :length], part)
            cache.lengths[b : b + 1] = part.lengths
        for step in (0, 1):  # one new token for each row, at its own position
            new = torch.stack([text[b, length + step] for b, length in enumerate(lengths)])
            logits = model(new[:, None], cache)
            for b, length in enumerate(lengths):
                alone = model(text[b : b + 1, : length + step + 1])[0, -1]
                torch.testing.assert_close(logits[b, 0], alone, atol=1e-5, rtol=1e-4)


def test_what_lies_past_a_rows_end_cannot_reach_it():
    model = MODELS["eager"]
    results = []
    for rubbish in (0.0, 1e30):
        cache = KVCache(model, 2, CONTEXT)
        for tensor in (*cache.keys, *cache.values):
            tensor.fill_(rubbish)
        with torch.inference_mode():
            for b, length in enumerate((2, 6)):
                part = cache.select(slice(b, b + 1))
                model(tokens(1, length, seed=b), part)
                cache.lengths[b : b + 1] = part.lengths
            results.append(model(tokens(2, 1), cache))
    assert torch.equal(*results)


def test_selected_rows_continue_without_the_others():
    model = MODELS["eager"]
    text = tokens(3, 6)
    cache = KVCache(model, 3, CONTEXT)
    with torch.inference_mode():
        model(text[:, :5], cache)
        kept = cache.select([2, 0])
        logits = model(text[[2, 0], 5:], kept)
        torch.testing.assert_close(logits, model(text)[[2, 0], 5:], atol=1e-5, rtol=1e-4)


def test_appending_copies_nothing_but_the_new_positions():
    model = MODELS["eager"]
    cache = KVCache(model, 1, CONTEXT)
    addresses = [tensor.data_ptr() for tensor in (*cache.keys, *cache.values)]
    with torch.inference_mode():
        for t in range(CONTEXT):
            model(tokens(1, 1, seed=t), cache)
    assert addresses == [tensor.data_ptr() for tensor in (*cache.keys, *cache.values)]


def test_more_tokens_than_the_context_are_refused():
    model = MODELS["eager"]
    cache = KVCache(model, 1, CONTEXT)
    with torch.inference_mode():
        model(tokens(1, CONTEXT), cache)
        with pytest.raises(ValueError, match="13 tokens do not fit the model's context_length of 12"):
            model(tokens(1, 1), cache)


def test_the_cache_takes_the_number_format_of_the_weights():
    model = build().bfloat16()
    cache = KVCache(model, 1, CONTEXT)
    with torch.inference_mode():
        model(tokens(1, 3), cache)
    assert {tensor.dtype for tensor in (*cache.keys, *cache.values)} == {torch.bfloat16}
