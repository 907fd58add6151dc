import pytest

from gptmini.config import Config, GPTConfig, ModelConfig, TrainConfig
from gptmini.model import GPT
from gptmini.training.plan import count_parameters, plan

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 8}


@pytest.mark.parametrize("bias", [True, False])
def test_counted_parameters_are_those_of_the_model(bias):
    config = GPTConfig(vocab_size=61, bias=bias, **SHAPE)
    assert count_parameters(config) == sum(p.numel() for p in GPT(config).parameters())


def test_the_plan_counts_tokens_and_epochs():
    config = Config(model=ModelConfig(**SHAPE), train=TrainConfig(batch_size=4, max_steps=100))
    result = plan(config, GPTConfig(vocab_size=61, **SHAPE), corpus_tokens=1600)
    assert result.tokens_per_step == 32
    assert result.tokens == 3200
    assert result.epochs == 2


def test_a_corpus_too_small_for_the_model_is_warned_of():
    config = Config(model=ModelConfig(**SHAPE), train=TrainConfig(batch_size=4, max_steps=100))
    model = GPTConfig(vocab_size=61, **SHAPE)
    assert "small for this run" in str(plan(config, model, corpus_tokens=100))
    assert "warning" not in str(plan(config, model, corpus_tokens=100_000))
