import numpy as np
import pytest
import torch

from gptmini.config import GPTConfig, RuntimeConfig
from gptmini.data.batching import validation_batches
from gptmini.data.tokenizers import CharTokenizer
from gptmini.evaluation.window_losses import evaluate_windows
from gptmini.model import GPT
from gptmini.training.loss import evaluate_batches
from gptmini.training.runtime import start_runtime

TOKENIZER = CharTokenizer("abcdé")
RUNTIME = start_runtime(RuntimeConfig(device="cpu", precision="fp32"))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(GPTConfig(n_layer=1, n_head=2, n_embd=8, context_length=8, vocab_size=6))


@pytest.mark.parametrize("max_tokens", [None, 24])
def test_the_overall_loss_is_what_training_reports(model, max_tokens):
    tokens = np.random.default_rng(0).integers(0, 6, 103)
    model.train()
    found = evaluate_windows(model, tokens, TOKENIZER, 8, RUNTIME, batch_size=3, max_tokens=max_tokens)
    batches = validation_batches(tokens, 8, 5, max_tokens)
    expected = evaluate_batches(model, batches, TOKENIZER.count_bytes, RUNTIME)
    assert found.overall.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.overall.bits_per_byte == pytest.approx(expected.bits_per_byte, rel=1e-5)
    assert found.overall.tokens == expected.tokens
    assert model.training


class Certain(torch.nn.Module):
    """Is sure that b comes next."""

    def forward(self, tokens):
        return torch.eye(6)[torch.ones_like(tokens)] * 10


def test_the_extremes_are_the_windows_with_most_and_least_surprise():
    text = "a" + "bbbb" + "bcéc" + "cccc" + "bbbc" + "cc"
    tokens = np.array(TOKENIZER.encode(text))
    found = evaluate_windows(Certain(), tokens, TOKENIZER, 4, RUNTIME, batch_size=2, count=2)
    assert [window.text for window in found.worst] == ["cccc", "bcéc"]
    assert [window.text for window in found.best] == ["bbbb", "bbbc"]
    assert [window.start for window in found.worst] == [9, 5]
    assert found.worst[0].loss == pytest.approx(10, abs=0.01)
    assert found.worst[1].bits_per_byte == pytest.approx(30 / np.log(2) / 5, rel=0.01)


def test_a_text_shorter_than_a_window_is_one(model):
    found = evaluate_windows(model, np.array([0, 1, 2]), TOKENIZER, 8, RUNTIME)
    assert [window.text for window in found.worst] == ["bc"]
    assert found.overall.tokens == 2
