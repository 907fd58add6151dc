"""Generation against transformers token for token, the cache against no cache, and what users ask for."""

import itertools
import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

import gptmini
from gptmini.checkpoint.store import load_model
from gptmini.config import GPTConfig
from gptmini.data.tokenizers import CharTokenizer, Tokenizer
from gptmini.errors import DivergedError, UserError
from gptmini.generation import sampling
from gptmini.generation.generate import generate, generate_by_definition, generate_tokens, window_start
from gptmini.generation.precision import set_precision
from gptmini.generation.sampling import Sampling
from gptmini.generation.streaming import generate_text, stream
from gptmini.model import GPT

CONTEXT = 24
generate_module = sys.modules[generate.__module__]  # its name is that of the function


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A Hugging Face GPT-2 directory that transformers made, with weights far from their initial ones."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=257, n_positions=CONTEXT, n_embd=32, n_layer=3, n_head=4, bos_token_id=256,
        eos_token_id=256, initializer_range=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(directory):
    return load_model(directory)[0]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train("", "bytes")


def prompts(batch, length, seed=0):
    return torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(seed))


def transformers_generate(directory, tokens, mask=None, **options):
    twin = GPT2LMHeadModel.from_pretrained(directory).eval()
    mask = torch.ones_like(tokens) if mask is None else mask
    with torch.inference_mode():
        return twin.generate(tokens, attention_mask=mask, do_sample=False, pad_token_id=256, **options)


def test_greedy_equals_transformers_token_for_token_up_to_the_context(model, directory):
    for seed in range(5):
        tokens = prompts(1, 5, seed)
        n = CONTEXT - 5
        expected = transformers_generate(directory, tokens, max_new_tokens=n)[0]
        ours = generate(model, tokens, max_new_tokens=n, temperature=0, stop_token=256)[0]
        assert ours.tolist() == expected.tolist()


def test_a_batch_of_unequal_prompts_equals_transformers_padded_batch(model, directory):
    lengths = [1, 3, 4, 7, 7, 9, 10, 12]
    rows = [prompts(1, n, seed=n + i)[0].tolist() for i, n in enumerate(lengths)]
    width, new = max(lengths), CONTEXT - max(lengths)
    padded = torch.tensor([[256] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    expected = transformers_generate(directory, padded, mask, max_new_tokens=new)[:, width:].tolist()
    ours = generate(model, rows, max_new_tokens=new, temperature=0, stop_token=256)
    for row, result, theirs in zip(rows, ours, expected, strict=True):
        end = theirs.index(256) + 1 if 256 in theirs else len(theirs)
        assert result[len(row) :] == theirs[:end]


def test_greedy_equals_transformers_at_the_shape_of_gpt2_124m(tmp_path, long):
    if not long:
        pytest.skip("takes minutes: --long")
    torch.manual_seed(0)
    config = GPT2Config(bos_token_id=256, eos_token_id=None, initializer_range=0.1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model, _ = load_model(tmp_path)
    (row,) = prompts(1, 32).tolist()
    new = config.n_positions - len(row)
    expected = transformers_generate(tmp_path, torch.tensor([row]), max_new_tokens=new).tolist()
    assert generate(model, [row], max_new_tokens=new, temperature=0) == expected
    assert len(set(expected[0][32:])) > 100  # weights of GPT-2's initial size would repeat one token

    rows = [prompts(1, n, seed=n)[0].tolist() for n in (1, 30, 60, 61, 100, 101, 150, 200)]
    new = config.n_positions - 200
    padded = torch.tensor([[256] * (200 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (200 - len(row)) + [1] * len(row) for row in rows])
    expected = transformers_generate(tmp_path, padded, mask, max_new_tokens=new)[:, 200:].tolist()
    ours = generate(model, rows, max_new_tokens=new, temperature=0)
    assert [text[len(row) :] for text, row in zip(ours, rows, strict=True)] == expected
    faster = generate(set_precision(model), [rows[1]], max_new_tokens=new, temperature=0)
    assert faster == [rows[1] + expected[1]]


SAMPLERS = [
    {"temperature": 0.0},
    {"temperature": 0.7, "seed": 1},
    {"top_k": 5, "seed": 2},
    {"top_p": 0.6, "seed": 3},
    {"min_p": 0.1, "seed": 4},
    {"repetition_penalty": 1.5, "temperature": 0.9, "seed": 5},
    {"temperature": 1.2, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1, "seed": 6},
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("length", [1, 5, CONTEXT - 1, CONTEXT])
def test_cached_equals_uncached_far_past_the_context(model, sampler, length):
    tokens = prompts(2, length)
    cached = generate(model, tokens, max_new_tokens=3 * CONTEXT, **sampler)
    plain = generate(model, tokens, max_new_tokens=3 * CONTEXT, use_cache=False, **sampler)
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_cached_equals_uncached_at_every_length_of_the_prompt(model, sampler):
    for length in range(1, CONTEXT + 1):
        tokens = prompts(1, length, seed=length).expand(3, -1)  # copies sample with seeds of their own
        cached = generate(model, tokens, max_new_tokens=12, **sampler)
        plain = generate(model, tokens, max_new_tokens=12, use_cache=False, **sampler)
        assert torch.equal(cached, plain)


def test_cached_equals_uncached_for_unequal_prompts_past_the_context(model):
    rows = [prompts(1, n, seed=n)[0].tolist() for n in (1, 2, 10, 20, CONTEXT)]
    for sampler in SAMPLERS:
        cached = generate(model, rows, max_new_tokens=2 * CONTEXT, stop_token=7, **sampler)
        plain = generate(model, rows, max_new_tokens=2 * CONTEXT, stop_token=7, use_cache=False, **sampler)
        assert cached == plain


def test_a_row_does_not_depend_on_what_else_is_in_the_batch(model):
    rows = [prompts(1, n, seed=n)[0].tolist() for n in (3, 8, 5)]
    together = generate(model, rows, max_new_tokens=30, seed=9)
    alone = [generate(model, [row], max_new_tokens=30, seed=9)[0] for row in rows]
    assert together == alone


def test_copies_of_a_prompt_sample_apart_and_copy_k_has_the_text_of_seed_plus_k(model):
    row, other = prompts(1, 4)[0].tolist(), prompts(1, 4, seed=1)[0].tolist()
    together = generate(model, [row, other, row, row], max_new_tokens=30, seed=9)
    alone = [generate(model, [row], max_new_tokens=30, seed=seed)[0] for seed in (9, 10, 11)]
    assert [together[0], together[2], together[3]] == alone
    assert together[1] == generate(model, [other], max_new_tokens=30, seed=9)[0]
    assert len({tuple(text) for text in together}) == 4


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("length", [1, 7, CONTEXT])
def test_the_engine_equals_the_definition_far_past_the_context(model, sampler, length):
    tokens = prompts(3, length)
    tokens[2] = tokens[0]  # a copy samples with a seed of its own
    expected = generate_by_definition(model, tokens, 2 * CONTEXT, Sampling(**sampler))
    assert torch.equal(generate(model, tokens, max_new_tokens=2 * CONTEXT, **sampler), expected)


def test_first_tokens_over_many_seeds_follow_the_models_distribution(model):
    n, prompt = 4000, prompts(1, 3)
    sampling = {"temperature": 2.0, "top_k": 8}
    tokens = generate(model, prompt.expand(n, -1), max_new_tokens=1, seed=100, **sampling)[:, -1]
    with torch.inference_mode():
        likeliest = (model(prompt)[0, -1].double() / 2.0).topk(8)
    expected = n * likeliest.values.softmax(-1)
    counts = (tokens[:, None] == likeliest.indices).sum(dim=0)
    assert counts.sum() == n
    # 7 degrees of freedom: a right sampler exceeds 24.3 once in a thousand seeds, and this seed is fixed
    assert ((counts - expected).square() / expected).sum() < 24.3
    assert ((counts - n / 8).square() / (n / 8)).sum() > 24.3  # the test can fail


def test_log_probabilities_are_those_of_one_pass_over_the_text(model):
    text = prompts(1, 5)[0].tolist()
    options = {"max_new_tokens": CONTEXT - 5, "top_k": 9, "seed": 1}
    (whole,), (got,) = generate(model, [text], log_probabilities=True, **options)
    with torch.inference_mode():
        logits = model(torch.tensor([whole]))[0, 4:-1]
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(whole[5:])[:, None]).flatten()
    torch.testing.assert_close(torch.tensor(got), expected, atol=1e-4, rtol=1e-4)


def test_log_probabilities_come_with_the_tokens_on_request(model):
    rows = [prompts(1, n, seed=n)[0].tolist() for n in (3, 8)]
    options = {"max_new_tokens": 6, "seed": 2, "top_k": 9, "stop_token": 7}
    texts, scores = gptmini.generate(model, rows, log_probabilities=True, **options)
    assert texts == gptmini.generate(model, rows, **options)
    for row, text, got in zip(rows, texts, scores, strict=True):
        with torch.inference_mode():
            expected = model(torch.tensor([text[:-1]]))[0, len(row) - 1 :].log_softmax(-1)
        expected = expected.gather(-1, torch.tensor(text[len(row) :])[:, None]).flatten()
        torch.testing.assert_close(torch.tensor(got), expected, atol=1e-4, rtol=1e-4)
    tensor, scores = generate(model, prompts(2, 4), max_new_tokens=3, seed=1, log_probabilities=True)
    assert tensor.shape == (2, 7)
    assert [len(row) for row in scores] == [3, 3]


def test_a_row_that_ends_early_is_filled_up_with_the_stop_token(model):
    free = generate(model, prompts(3, 5), max_new_tokens=20, seed=1)
    stop = free[1, 9].item()
    stopped = generate(model, prompts(3, 5), max_new_tokens=20, seed=1, stop_token=stop)
    for row, whole in zip(stopped.tolist(), free.tolist(), strict=True):
        end = whole.index(stop, 5) + 1 if stop in whole[5:] else len(whole)
        assert row == whole[:end] + [stop] * (len(row) - end)
    assert (stopped[1] == stop).sum() > 10


def test_bfloat16_weights_generate(directory):
    model = load_model(directory)[0].bfloat16()
    assert generate(model, prompts(2, 5), max_new_tokens=2 * CONTEXT, seed=0).shape == (2, 5 + 2 * CONTEXT)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("batch", [1, 3])
def test_greedy_text_on_cuda_is_that_of_the_cpu(model, directory, batch):
    tokens, n = prompts(batch, 5), 2 * CONTEXT
    expected = generate(model, tokens, max_new_tokens=n, temperature=0)
    on_cuda = load_model(directory, "cuda")[0]
    for use_cache in (True, False):
        got = generate(on_cuda, tokens.cuda(), max_new_tokens=n, temperature=0, use_cache=use_cache)
        assert torch.equal(got.cpu(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_cached_equals_uncached_on_cuda(directory, sampler):
    on_cuda, rows = load_model(directory, "cuda")[0], prompts(3, 5).tolist()
    rows[1] = rows[1][:2]
    cached = generate(on_cuda, rows, max_new_tokens=2 * CONTEXT, **sampler)
    assert cached == generate(on_cuda, rows, max_new_tokens=2 * CONTEXT, use_cache=False, **sampler)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_bfloat16_weights_generate_on_cuda(model, directory):
    on_cuda = set_precision(load_model(directory, "cuda")[0], "bf16")
    tokens = prompts(2, 5)
    with torch.inference_mode():
        expected, got = model(tokens), on_cuda(tokens.cuda()).float().cpu()
    assert (got - expected).norm() / expected.norm() < 0.03
    assert generate(on_cuda, tokens, max_new_tokens=2 * CONTEXT, seed=0).shape == (2, 5 + 2 * CONTEXT)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(model):
    tokens = prompts(1, 4)
    first = generate(model, tokens, max_new_tokens=20, seed=1)
    assert torch.equal(first, generate(model, tokens, max_new_tokens=20, seed=1))
    assert not torch.equal(first, generate(model, tokens, max_new_tokens=20, seed=2))
    assert not torch.equal(
        generate(model, tokens, max_new_tokens=20), generate(model, tokens, max_new_tokens=20)
    )


def modes(model):
    return [module.training for module in model.modules()]


def test_generating_leaves_modes_and_the_global_generator_alone(directory):
    model = load_model(directory)[0].train()
    model.blocks[1].mlp.dropout.eval()  # one part frozen, the rest training
    before, state = modes(model), torch.get_rng_state()
    generate(model, prompts(1, 4), max_new_tokens=5, seed=1)
    generate_by_definition(model, prompts(1, 4), 5, Sampling(seed=1))
    assert modes(model) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_left_open_does_not_touch_the_mode(directory):
    model = load_model(directory)[0].train()
    first = generate_tokens(model, [[1, 2]], Sampling(seed=1), max_new_tokens=5)
    next(first)
    assert all(modes(model))
    second = generate_tokens(model, [[1, 2]], Sampling(seed=1), max_new_tokens=5)
    next(second)
    model.eval()  # by the user, while both are open
    next(first)
    first.close()
    assert not any(modes(model))
    model.train()
    second.close()
    assert all(modes(model))


def test_streams_interleaved_with_training_change_neither_texts_nor_steps(directory, tokenizer):
    def step(model, optimizer):
        torch.manual_seed(3)
        loss = model(prompts(2, 8)).logsumexp(-1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def trained(while_streaming):
        model = load_model(directory)[0].train()
        for block in model.blocks:
            block.attn.dropout = block.mlp.dropout.p = 0.3
        model.blocks[1].eval()  # frozen, as in a fine-tuning
        before = modes(model)
        open_streams = [stream(model, tokenizer, "ab", max_new_tokens=9, seed=k) for k in range(2)]
        optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
        for _ in range(3):
            for texts in open_streams * while_streaming:
                next(texts)
            losses.append(step(model, optimizer))
        assert modes(model) == before
        open_streams[0].close()
        del open_streams  # collected without being closed
        assert modes(model) == before
        return losses

    assert trained(while_streaming=True) == trained(while_streaming=False)
    dropped = load_model(directory)[0].train()
    with torch.no_grad():
        assert not torch.equal(*(dropped.blocks[0].mlp.dropout(torch.ones(99)) for _ in range(2)))


def test_two_streams_side_by_side_are_those_that_run_alone(model, tokenizer):
    model.train()
    try:
        alone = [list(stream(model, tokenizer, "ab", max_new_tokens=20, seed=k)) for k in (1, 2)]
        both = [stream(model, tokenizer, "ab", max_new_tokens=20, seed=k) for k in (1, 2)]
        pieces = list(itertools.zip_longest(*both))
        assert [[piece for piece in column if piece] for column in zip(*pieces, strict=True)] == alone
        assert all(modes(model))
    finally:
        model.eval()


def test_an_exception_in_a_hook_comes_out_and_leaves_the_model_as_it_was(directory, tokenizer):
    model = load_model(directory)[0].train()
    texts = generate_text(model, tokenizer, "a", logits_hook=lambda logits, rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(texts)
    assert all(modes(model))
    assert not torch.is_inference_mode_enabled()
    assert len(next(generate_text(model, tokenizer, "a", max_new_tokens=3, seed=0))) > 1


class BanTokens(torch.nn.Module):
    """An output layer as users wrap it, which makes some tokens impossible."""

    def __init__(self, head, banned):
        super().__init__()
        self.head, self.banned = head, banned

    def forward(self, hidden):
        logits = self.head(hidden)
        logits[..., self.banned] = -torch.inf
        return logits


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_a_wrapped_head_may_ban_tokens(directory, sampler):
    model = load_model(directory)[0]
    model.lm_head = BanTokens(model.lm_head, range(0, 257, 2))
    text = generate(model, [[1]], max_new_tokens=60, **sampler)[0]
    assert all(token % 2 for token in text)
    model.lm_head.banned = range(257)
    with pytest.raises(DivergedError, match="no finite logits"):
        generate(model, [[1]], max_new_tokens=1, **sampler)


def test_a_penalty_reads_each_text_once_and_follows_the_rows_that_go_on(model, monkeypatch):
    rows, options = [[1, 2, 3], [4], [5, 6]], {"max_new_tokens": 40, "repetition_penalty": 3.0, "seed": 2}
    alone = [generate(model, [row], stop_token=7, **options)[0] for row in rows]
    assert len({len(text) for text in alone}) > 1  # some end before others
    calls = []
    seen_tokens = sampling.seen_tokens
    for module in (sampling, generate_module):
        monkeypatch.setattr(module, "seen_tokens", lambda *args: calls.append(args) or seen_tokens(*args))
    assert generate(model, rows, stop_token=7, **options) == alone
    assert len(calls) == 1


def test_there_is_no_dropout_in_generated_text_of_a_training_model(directory):
    model = load_model(directory)[0]
    expected = generate(model, prompts(1, 4), max_new_tokens=20, temperature=0)
    for block in model.blocks:
        block.attn.dropout = block.mlp.dropout.p = 0.5
    assert torch.equal(generate(model.train(), prompts(1, 4), max_new_tokens=20, temperature=0), expected)


def test_a_failing_forward_pass_restores_the_mode(directory):
    model = load_model(directory)[0].train()
    model.blocks[2].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(model, prompts(1, 4), max_new_tokens=1)
    assert all(modes(model))


def test_shapes_and_the_prompt_come_back(model):
    tokens = prompts(3, 4)
    result = gptmini.generate(model, tokens, max_new_tokens=6, seed=0)
    assert result.shape == (3, 10)
    assert result.dtype == torch.int64
    assert torch.equal(result[:, :4], tokens)
    assert torch.equal(gptmini.generate(model, tokens, max_new_tokens=0), tokens)
    assert generate(model, tokens[:0], max_new_tokens=3).shape == (0, 4)
    assert generate(model, [], max_new_tokens=3) == []


def test_one_text_needs_no_batch_around_it(model):
    tokens = prompts(1, 4)
    expected = generate(model, tokens, max_new_tokens=6, seed=0)[0]
    assert torch.equal(generate(model, tokens[0], max_new_tokens=6, seed=0), expected)
    assert generate(model, tokens[0].tolist(), max_new_tokens=6, seed=0) == expected.tolist()


def test_numpys_integers_are_integers(model):
    plain = generate(model, [[1, 2]], max_new_tokens=9, seed=3, stop_token=7, top_k=5)
    rows = [list(np.array([1, 2]))]
    options = {"max_new_tokens": np.int64(9), "seed": np.uint32(3), "stop_token": np.int16(7)}
    result = generate(model, rows, top_k=np.int64(5), **options)
    assert result == plain
    assert all(type(token) is int for token in result[0])


def test_a_wrapped_model_generates_as_the_one_inside(model, tokenizer):
    expected = generate(model, prompts(1, 4), max_new_tokens=6, seed=0, stop_token=7)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for wrapped in (torch.nn.DataParallel(model), torch.nn.parallel.DistributedDataParallel(model)):
            got = generate(wrapped, prompts(1, 4), max_new_tokens=6, seed=0, stop_token=7)
            assert torch.equal(got, expected)
            assert "".join(
                stream(wrapped, tokenizer, "a" * 50, max_new_tokens=3, truncate_prompt=True, seed=0)
            )
    finally:
        torch.distributed.destroy_process_group()


def test_the_logits_hook_sees_the_texts_and_decides_what_can_be_sampled(model, tokenizer):
    seen = []

    def only_a_or_b(logits, rows):
        seen.append([list(row) for row in rows])
        mask = torch.ones(logits.shape[-1], dtype=torch.bool)
        mask[[97, 98]] = False
        return logits.masked_fill(mask, -torch.inf)

    rows = [[1, 2], [3]]
    result = generate(model, rows, max_new_tokens=5, seed=0, logits_hook=only_a_or_b)
    assert seen[0] == rows
    assert seen[-1] == [text[:-1] for text in result]
    assert {token for text, row in zip(result, rows, strict=True) for token in text[len(row) :]} == {97, 98}
    (text,) = generate_text(model, tokenizer, "x", max_new_tokens=9, seed=0, logits_hook=only_a_or_b)
    assert set(text[1:]) <= {"a", "b"}
    assert (
        "x" + "".join(stream(model, tokenizer, "x", max_new_tokens=9, seed=0, logits_hook=only_a_or_b))
        == text
    )


def test_a_hook_that_works_in_place_leaves_the_log_probabilities_those_of_the_model(model):
    def favour_nine(logits, rows):
        logits[:, 9] += 1e4
        return logits

    text, (scores,) = generate(
        model, [[1, 2]], max_new_tokens=1, logits_hook=favour_nine, log_probabilities=True, temperature=0
    )
    assert text == [[1, 2, 9]]
    with torch.inference_mode():
        assert scores == [pytest.approx(model(torch.tensor([[1, 2]]))[0, -1].log_softmax(-1)[9].item())]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (lambda logits, rows: logits.fill_(-torch.inf), "no token is left to sample: a logits_hook"),
        (lambda logits, rows: logits.fill_(torch.nan), "gave NaN"),
        (lambda logits, rows: None, r"must return a tensor \(1, 257\), not NoneType \(\)"),
        (lambda logits, rows: logits[0], r"must return a tensor \(1, 257\), not Tensor \(257,\)"),
    ],
)
def test_a_hook_that_leaves_nothing_to_sample_is_one_line(model, hook, message, temperature):
    with pytest.raises(UserError, match=message):
        generate(model, [[1, 2]], max_new_tokens=1, logits_hook=hook, temperature=temperature)


def test_a_hook_does_not_hide_a_damaged_model(directory):
    model = load_model(directory)[0]
    model.ln_f.bias.data[0] = float("nan")
    with pytest.raises(DivergedError, match="no finite logits"):
        generate(model, [[1]], max_new_tokens=1, logits_hook=lambda logits, rows: torch.zeros_like(logits))


def test_windows_jump_by_half_a_context():
    for context_length in range(1, 12):
        for length in range(1, 60):
            kept = length - window_start(length, context_length)
            assert 1 <= kept <= context_length
            if length > context_length:
                assert kept >= max(1, context_length // 2)


def test_streamed_pieces_join_to_the_text(model, tokenizer):
    for seed in range(10):
        (text,) = generate_text(model, tokenizer, "ab", max_new_tokens=60, seed=seed)
        pieces = list(stream(model, tokenizer, "ab", max_new_tokens=60, seed=seed))
        assert "ab" + "".join(pieces) == text


class Scripted(GPT):
    """A model that writes given bytes, whatever the prompt."""

    def __init__(self, script: bytes) -> None:
        super().__init__(GPTConfig(vocab_size=257, n_layer=1, n_head=1, n_embd=1, context_length=100))
        self.script = [*script, 256]
        self.lm_head = torch.nn.Identity()
        self.given = 0

    def hidden_states(self, tokens, cache=None):
        if cache is not None:
            cache.advance(tokens.shape[1])
        logits = torch.full((tokens.shape[0], tokens.shape[1], 257), -10.0)
        logits[:, -1, self.script[min(self.given, len(self.script) - 1)]] = 10.0
        self.given += 1
        return logits


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=20))
def test_a_streamed_piece_never_splits_a_character(text):
    tokenizer = Tokenizer.train("", "bytes")
    pieces = list(stream(Scripted(text.encode()), tokenizer, "x", max_new_tokens=90, temperature=0))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


def test_bytes_that_are_no_character_become_the_replacement_character_only_where_they_are_allowed(tokenizer):
    options = {"max_new_tokens": 90, "temperature": 0}
    pieces = stream(Scripted(b"a\xffb\xe4"), tokenizer, "x", allow_invalid_utf8=True, **options)
    assert "".join(pieces) == "a\ufffdb\ufffd"
    # Of the tokens that may follow, all as likely here, the first is taken: NUL, and a continuation byte.
    pieces = stream(Scripted(b"a\xffb\xc3"), tokenizer, "x", **options)
    assert "".join(pieces) == "a\x00b\xc0"


@pytest.mark.parametrize("stop", [["END"], ["ND!", "END"], ["xx", "E"]])
def test_a_stop_string_ends_the_text_even_across_tokens(tokenizer, stop):
    for text in (
        "x"
        + "".join(stream(Scripted(b"say END!"), tokenizer, "x", max_new_tokens=50, temperature=0, stop=stop)),
        *generate_text(Scripted(b"say END!"), tokenizer, "x", max_new_tokens=50, temperature=0, stop=stop),
    ):
        assert text == "xsay "


def test_end_of_text_ends_the_text_and_is_not_shown(tokenizer):
    (text,) = generate_text(Scripted(b"hello"), tokenizer, "x", max_new_tokens=50, temperature=0)
    assert text == "xhello"


def test_an_empty_prompt_starts_from_end_of_text(model, tokenizer):
    (text,) = generate_text(model, tokenizer, "", max_new_tokens=5, temperature=0)
    expected = generate(model, torch.tensor([[256]]), max_new_tokens=5, temperature=0, no_repeat_token=256)
    assert text == tokenizer.decode(expected[0, 1:].tolist())


def test_end_of_text_does_not_follow_end_of_text_so_no_text_is_empty(tokenizer):
    script = Scripted(b"")  # it always writes end of text
    (text,) = generate_text(script, tokenizer, "", max_new_tokens=50, temperature=0)
    assert len(text) == 1


def test_a_prompt_longer_than_the_context_is_refused_or_cropped_on_request(model, tokenizer):
    prompt = "abc" * 20
    with pytest.raises(UserError, match="the prompt has 60 tokens, but the model's context is 24"):
        list(generate_text(model, tokenizer, prompt, max_new_tokens=5))
    (text,) = generate_text(model, tokenizer, prompt, max_new_tokens=5, temperature=0, truncate_prompt=True)
    (end,) = generate_text(model, tokenizer, prompt[-24:], max_new_tokens=5, temperature=0)
    assert text == prompt + end[24:]


def test_special_token_text_and_nul_are_plain_text_and_half_a_surrogate_pair_is_none(model, tokenizer):
    (text,) = generate_text(model, tokenizer, "<|endoftext|>", max_new_tokens=1, seed=0)
    assert text.startswith("<|endoftext|>")
    list(generate_text(model, tokenizer, "a\x00", max_new_tokens=1, seed=0))
    for start in (generate_text, stream):
        with pytest.raises(UserError, match="half of a surrogate pair"):  # at the call
            start(model, tokenizer, "a\ud800", max_new_tokens=1, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k = -1"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"min_p": -0.1}, "min_p = -0.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0"),
        ({"max_new_tokens": -1}, "max_new_tokens = -1"),
        ({"max_new_tokens": 2.0}, "max_new_tokens = 2.0 must be a whole number"),
        ({"max_new_tokens": None}, "max_new_tokens = None must be a whole number"),
        ({"seed": 1.5}, "seed = 1.5: needs a whole number of at least 0"),
        ({"seed": "a"}, "seed = 'a': needs a whole number of at least 0"),
        ({"seed": -1}, "seed = -1"),
        ({"stop_token": 257}, "stop_token = 257 must be a whole number below the model's vocab_size of 257"),
        ({"stop_token": -1}, "stop_token = -1 must be a whole number below"),
        ({"stop_token": 1.5}, "stop_token = 1.5 must be a whole number below"),
        (
            {"no_repeat_token": 257},
            "no_repeat_token = 257 must be a whole number below the model's vocab_size",
        ),
        ({"top_q": 1}, "unknown key top_q; did you mean top_"),
    ],
)
def test_impossible_options_are_one_clean_line(model, options, message):
    with pytest.raises(UserError) as error:
        generate(model, prompts(1, 3), **{"max_new_tokens": 2, **options})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_empty_prompts_and_foreign_ids_are_refused(model):
    for empty in ([[]], torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)):
        with pytest.raises(UserError, match="holds no tokens: start from end of text"):
            generate(model, empty, max_new_tokens=1)
    with pytest.raises(
        UserError, match="token id = 257 must be a whole number below the model's vocab_size of 257"
    ):
        generate(model, [[257]], max_new_tokens=1)


@pytest.mark.parametrize(
    "tokens",
    [
        torch.tensor([[[1, 2]]]), torch.tensor([[1.0, 2.0]]), torch.tensor([[True]]), "text", ["text"],
        [True], [[1.5]], [torch.tensor([1.0, 2.0])],
    ],
)  # fmt: skip
def test_what_is_no_batch_of_ids_is_refused(model, tokens):
    with pytest.raises(UserError, match=r"must be int64 \(B, T\)"):
        generate(model, tokens, max_new_tokens=1)


def test_one_stop_string_may_stand_alone(tokenizer):
    (text,) = generate_text(
        Scripted(b"say END!"), tokenizer, "x", max_new_tokens=50, temperature=0, stop="END"
    )
    assert text == "xsay "


def test_an_empty_stop_string_is_refused(model, tokenizer):
    with pytest.raises(UserError, match="a stop string must be a text that is not empty"):
        list(generate_text(model, tokenizer, "a", max_new_tokens=1, stop=[""]))


def test_a_model_without_finite_logits_is_refused(directory):
    model = load_model(directory)[0]
    model.ln_f.bias.data[0] = float("nan")
    with pytest.raises(DivergedError, match="no finite logits"):
        generate(model, prompts(1, 3), max_new_tokens=1)


def test_chars_models_write_their_own_characters():
    tokenizer = CharTokenizer(["a", "b"])
    model = GPT(GPTConfig(vocab_size=3, n_layer=1, n_head=1, n_embd=4, context_length=8))
    (text,) = generate_text(model, tokenizer, "ab", max_new_tokens=20, seed=0)
    assert set(text) <= {"a", "b"}


def test_a_logits_hook_may_change_the_texts_that_it_is_given(model):
    def spoil(logits, rows):
        for row in rows:
            row.clear()
        return logits

    plain = generate(model, [[1, 2], [3]], max_new_tokens=6, seed=1)
    assert generate(model, [[1, 2], [3]], max_new_tokens=6, seed=1, logits_hook=spoil) == plain


def test_rows_of_a_list_may_be_arrays_or_tensors(model):
    expected = generate(model, [[1, 2], [3]], max_new_tokens=3, seed=1)
    for rows in ([torch.tensor([1, 2]), torch.tensor([3])], [np.array([1, 2]), np.array([3])]):
        assert generate(model, rows, max_new_tokens=3, seed=1) == expected
    both = np.array([[1, 2], [3, 4]])
    assert generate(model, both, max_new_tokens=2, seed=1) == generate(
        model, both.tolist(), max_new_tokens=2, seed=1
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer": None}, "generating text needs the model's tokenizer, not NoneType"),
        ({"prompt": ["a", "b"]}, "encode takes a text (str), not list"),
        ({"num_samples": 1.5}, "num_samples = 1.5 must be a whole number of at least 0"),
        ({"stop": [3]}, "stop = [3]: a stop string must be a text that is not empty"),
        ({"stop": 3}, "stop = 3: a stop string must be a text"),
        ({"stop": iter("ab")}, "a stop string must be a text"),  # several samples would need it
    ],
)
def test_a_wrong_argument_of_generate_text_is_one_line(model, tokenizer, changed, message):
    arguments = {"model": model, "tokenizer": tokenizer, "prompt": "a", "max_new_tokens": 2, **changed}
    with pytest.raises(UserError, match=re.escape(message)):
        list(generate_text(**arguments))


def test_stop_may_be_none(model, tokenizer):
    plain = list(generate_text(model, tokenizer, "a", max_new_tokens=3, seed=1))
    assert list(generate_text(model, tokenizer, "a", max_new_tokens=3, seed=1, stop=None)) == plain
