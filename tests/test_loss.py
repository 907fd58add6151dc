import math

import pytest
import torch

from gptmini.config import GPTConfig, RuntimeConfig
from gptmini.model import GPT
from gptmini.training.loss import evaluate_batches, next_token_loss
from gptmini.training.runtime import start_runtime

TINY = GPTConfig(vocab_size=11, n_layer=1, n_head=1, n_embd=8, context_length=6, dropout=0.5)


def batch(size, length, seed=0):
    tokens = torch.randint(11, (size, length + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def test_loss_is_the_mean_negative_log_probability_of_the_targets():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 2], [3, 4, 0]])
    expected = -logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).mean()
    torch.testing.assert_close(next_token_loss(logits, targets), expected)


def test_evaluation_weighs_every_token_equally_whatever_the_batches():
    model = GPT(TINY)
    runtime = start_runtime(RuntimeConfig(device="cpu", precision="fp32"))
    whole, short = batch(4, 6), batch(1, 2, seed=1)
    together = evaluate_batches(model, [whole, short], lambda t: 2 * t.numel(), runtime)
    model.eval()
    with torch.no_grad():
        nats = sum(
            torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item()
            for x, y in (whole, short)
        )
    assert together.tokens == 26
    assert together.loss == pytest.approx(nats / 26)
    assert together.bits_per_byte == pytest.approx(nats / math.log(2) / 52)
    assert together.perplexity == pytest.approx(math.exp(nats / 26))


def test_evaluation_leaves_the_model_and_the_random_state_as_they_were():
    model = GPT(TINY).train()
    model.blocks[0].attn.eval()  # as for frozen layers: each module keeps its own mode
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    runtime = start_runtime(RuntimeConfig(device="cpu"))
    first = evaluate_batches(model, [batch(2, 6)], torch.numel, runtime)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert evaluate_batches(model, [batch(2, 6)], torch.numel, runtime) == first  # no dropout
