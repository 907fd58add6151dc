import subprocess
import sys

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from gptmini.cli.main import main
from gptmini.config import Config, GPTConfig, ModelConfig, OptimConfig, RuntimeConfig, TrainConfig
from gptmini.distributed.fsdp import checkpoint_activations
from gptmini.model import GPT
from gptmini.training.estimate import (
    activation_bytes_per_sequence,
    block_bytes_per_sequence,
    count_parameters,
    estimate,
    flops_per_token,
)
from gptmini.training.loss import next_token_loss
from gptmini.training.optim import build_optimizers, optimizer_tensors

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 8}


@pytest.mark.parametrize("bias", [True, False])
def test_counted_parameters_are_those_of_the_model(bias):
    config = GPTConfig(vocab_size=61, bias=bias, **SHAPE)
    assert count_parameters(config) == sum(p.numel() for p in GPT(config).parameters())


def test_the_plan_counts_tokens_and_epochs():
    config = Config(model=ModelConfig(**SHAPE), train=TrainConfig(batch_size=4, max_steps=100))
    result = estimate(config, GPTConfig(vocab_size=61, **SHAPE), corpus_tokens=1600, precision="fp32")
    assert result.tokens_per_step == 32
    assert result.tokens == 3200
    assert result.epochs == 2


def test_a_corpus_too_small_for_the_model_is_warned_of():
    config = Config(model=ModelConfig(**SHAPE), train=TrainConfig(batch_size=4, max_steps=100))
    model = GPTConfig(vocab_size=61, **SHAPE)
    assert "small for this run" in str(estimate(config, model, corpus_tokens=100, precision="fp32"))
    assert "warning" not in str(estimate(config, model, corpus_tokens=100_000, precision="fp32"))
    once = Config(model=ModelConfig(**SHAPE), train=TrainConfig(batch_size=4, max_steps=1))
    assert "warning" not in str(estimate(once, model, corpus_tokens=100, precision="fp32"))  # seen in part


def kept_bytes(model, batch_size, precision):
    """Bytes that autograd keeps for the backward pass, without weights, their copies, and the log-softmax."""
    config = model.config
    ours = [*model.parameters(), *model.buffers()]
    storages = {t.untyped_storage().data_ptr() for t in ours}
    shapes = {tuple(p.shape) for p in ours if p.dim() == 2} | {tuple(p.T.shape) for p in ours if p.dim() == 2}
    kept = {}

    def keep(tensor):
        pointer = tensor.untyped_storage().data_ptr()
        logits = tensor.shape[-1:] == (config.vocab_size,) and tensor.dtype == torch.float32
        if pointer not in storages and not logits and tuple(tensor.shape) not in shapes:
            kept[pointer] = tensor.detach()  # alive, so that no other tensor gets its place
        return tensor

    tokens = torch.randint(config.vocab_size, (batch_size, config.context_length + 1))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(tokens[:, :-1])
        next_token_loss(logits, tokens[:, 1:])
    return sum(t.untyped_storage().nbytes() for t in kept.values() if t.is_floating_point())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("attention", ["eager", "additive", "sdpa"])
def test_planned_activations_are_what_autograd_keeps(attention, dropout, precision):
    config = GPTConfig(
        vocab_size=61,
        n_layer=3,
        n_head=4,
        n_embd=48,
        context_length=20,
        attention=attention,
        dropout=dropout,
    )
    planned = 5 * activation_bytes_per_sequence(config, precision)
    assert kept_bytes(GPT(config).train(), 5, precision) == pytest.approx(planned, rel=0.001)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_planned_optimizer_bytes_are_those_of_its_state(optimizer):
    config = Config(model=ModelConfig(**SHAPE), optim=OptimConfig(optimizer=optimizer))
    model = GPT(GPTConfig(vocab_size=61, **SHAPE))
    optimizers = build_optimizers(model, config.optim)
    model(torch.zeros(1, 8, dtype=torch.int64)).sum().backward()
    for one in optimizers:
        one.step()
    tensors = optimizer_tensors(model, optimizers)
    state = sum(t.nbytes for name, t in tensors.items() if not name.endswith("/step"))
    assert estimate(config, model.config, None, "fp32").memory.optimizer == state


@pytest.mark.parametrize(
    ("n_layer", "n_head", "n_embd", "parameters"),
    [
        (12, 12, 768, 124_439_808),
        (24, 16, 1024, 354_823_168),
        (36, 20, 1280, 774_030_080),
        (48, 25, 1600, 1_557_611_200),
    ],
)
def test_the_plans_of_gpt2s_sizes_agree_with_models_on_the_meta_device(n_layer, n_head, n_embd, parameters):
    config = GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd, context_length=1024)
    with torch.device("meta"):
        weights = list(GPT(config).parameters())
    planned = estimate(Config(), config, None, "fp32")
    assert planned.parameters == sum(p.numel() for p in weights) == parameters
    assert planned.memory.weights == planned.memory.gradients == sum(p.nbytes for p in weights)
    assert planned.memory.optimizer == 2 * sum(p.nbytes for p in weights)


def test_micro_batches_and_ranks_share_the_activations():
    model = GPTConfig(vocab_size=61, **SHAPE)
    full = estimate(Config(), model, None, "fp32").memory
    halves = estimate(Config(train=TrainConfig(micro_batch_size=16)), model, None, "fp32").memory
    shared = estimate(Config(), model, None, "fp32", world_size=2).memory
    assert halves.activations == shared.activations == full.activations / 2
    assert shared.weights == full.weights
    assert shared.logits < halves.logits < full.logits  # halves hold those of the micro batch before too
    assert shared.peak - shared.overhead < halves.peak - halves.overhead < full.peak - full.overhead


def test_ranks_of_a_sharded_model_share_weights_gradients_and_optimizer():
    model = GPTConfig(n_layer=48, n_head=25, n_embd=1600, context_length=1024)  # GPT-2 XL
    with torch.device("meta"):
        full = sum(p.nbytes for p in GPT(model).parameters())
    config = Config(runtime=RuntimeConfig(parallel="fsdp"))
    memory = estimate(config, model, None, "bf16", world_size=8).memory
    assert memory.weights == memory.gradients == full // 8
    assert memory.optimizer == 2 * full // 8
    embeddings, block = (50257 + 1024) * 1600, 12 * 1600**2
    assert memory.gathered == 2 * 2 * embeddings + 10 * block < full / 8
    assert memory.saved == 3 * full + 4 * 48 * block  # and the transposed matrices, on the main rank
    alone = estimate(config, model, None, "bf16").memory
    assert (alone.weights, alone.gathered, alone.saved) == (
        full + 2 * (full // 4 - 1024 * 1600 - VECTORS),
        0,
        0,
    )


VECTORS = 48 * (2 * 2 + 3 + 1 + 4 + 1) * 1600 + 2 * 1600
"""GPT-2 XL's LayerNorms and biases, of which there are no copies in the products' format."""


def test_recomputed_blocks_keep_only_their_input():
    model = GPTConfig(vocab_size=61, n_layer=3, n_head=4, n_embd=48, context_length=20)
    block, streams = block_bytes_per_sequence(model, "fp32"), 3 * 4 * 20 * 48
    recompute = activation_bytes_per_sequence(model, "fp32", recompute=True)
    assert recompute == activation_bytes_per_sequence(model, "fp32") - 2 * block + streams
    gpt = GPT(model).train()
    checkpoint_activations(gpt)
    assert kept_bytes(gpt, 5, "fp32") == pytest.approx(5 * (recompute - block), rel=0.001)


def test_flops_are_six_for_each_multiplying_weight_and_those_of_attention():
    config = GPTConfig(vocab_size=61, bias=False, **SHAPE)
    with torch.device("meta"):
        model = GPT(config)
    multiplying = sum(p.numel() for p in model.parameters()) - model.position_embedding.weight.numel()
    assert flops_per_token(config) == 6 * multiplying + 3 * 2 * (2 * 2 * 8 * 16)  # q k^T and weights v


def test_gptmini_plan_knows_a_corpus_once_it_is_prepared(tmp_path, capsys):
    text, path = tmp_path / "text.txt", tmp_path / "c.yaml"
    path.write_text(f"data: {{corpus: {text}}}\ntokenizer: {{kind: chars}}\nmodel: {{context_length: 16}}")
    assert main(["plan", str(path)]) == 0
    assert "256 (expected" in capsys.readouterr().out
    text.write_text("abcdefghij " * 100)
    assert main(["plan", str(path)]) == 0
    assert "256 (expected" in capsys.readouterr().out
    assert main(["prepare", str(path)]) == 0
    capsys.readouterr()
    assert main(["plan", str(path), "--tokens-per-second", "1000"]) == 0
    out = capsys.readouterr().out
    assert "vocabulary        12\n" in out  # and the end of text
    assert "of 990 training tokens" in out
    assert "0.14 at 1,000 tokens/s" in out  # 1,000 steps of 32 x 16


def test_gptmini_plan_measures_this_machine(capsys):
    shape = ["--model.n-layer", "1", "--model.n-embd", "8", "--model.context-length", "8"]
    assert main(["plan", *shape, "--tokenizer.kind", "bytes", "--runtime.device", "cpu", "--measure"]) == 0
    assert "at the peak, measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--world-size", "3"], "train.batch_size = 32: needs to be a multiple of 3 ranks"),
        (["--world-size", "2", "--measure"], "does not go with --world-size"),
        (["--tokens-per-second", "5", "--measure"], "does not go with --tokens-per-second"),
    ],
)
def test_what_cannot_be_planned_is_one_line(args, error, capsys):
    assert main(["plan", *args]) == 2
    assert error in capsys.readouterr().err


def test_gptmini_plan_answers_without_torch():
    code = "import sys; from gptmini.cli.main import main; main(['plan']); sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
    )
