"""Checkpoints in nanoGPT's format, made here; its model is written out below as the oracle."""

import io
import pickle

import pytest
import torch
from torch.nn import functional as F

import gptmini
from gptmini.checkpoint.nanogpt import gelu_difference, import_nanogpt
from gptmini.cli.main import main
from gptmini.errors import UserError

ARGS = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 12,
    "bias": True,
    "vocab_size": 30,
    "dropout": 0.0,
}


def weights(args, generator):
    """A nanoGPT state dict: Linear weights as (out, in), no biases where bias is False."""
    C, shapes = args["n_embd"], {}
    for i in range(args["n_layer"]):
        block = {
            "ln_1": (C,), "attn.c_attn": (3 * C, C), "attn.c_proj": (C, C), "ln_2": (C,),
            "mlp.c_fc": (4 * C, C), "mlp.c_proj": (C, 4 * C),
        }  # fmt: skip
        for name, shape in block.items():
            shapes |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[:1]}
    shapes |= {"wte.weight": (args["vocab_size"], C), "wpe.weight": (args["block_size"], C)}
    shapes |= {"ln_f.weight": (C,), "ln_f.bias": (C,)}
    state = {
        f"transformer.{name}": 0.3 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
        if args["bias"] or not name.endswith("bias")
    }
    return state | {"lm_head.weight": state["transformer.wte.weight"]}


def checkpoint(prefix="", **changes):
    args = ARGS | changes
    state = weights(args, torch.Generator().manual_seed(0))
    return {
        "model": {prefix + name: tensor for name, tensor in state.items()},
        "optimizer": {"state": {}, "param_groups": []},
        "model_args": args,
        "iter_num": 7,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char", "meta": None, "compile": True},
    }


def nanogpt_logits(checkpoint, tokens, gelu):
    """What nanoGPT's model gives for tokens (T,), straight from its state dict."""
    args = checkpoint["model_args"]
    w = {name.partition("transformer.")[2]: tensor for name, tensor in checkpoint["model"].items()}
    C, T = args["n_embd"], len(tokens)

    def linear(name, x):
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(name, x):
        return F.layer_norm(x, (C,), w[f"{name}.weight"], w.get(f"{name}.bias"), 1e-5)

    x = w["wte.weight"][tokens] + w["wpe.weight"][:T]
    for i in range(args["n_layer"]):
        q, k, v = (
            part.view(T, args["n_head"], -1).transpose(0, 1)
            for part in linear(f"h.{i}.attn.c_attn", norm(f"h.{i}.ln_1", x)).split(C, dim=1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).reshape(T, C)
        x = x + linear(f"h.{i}.attn.c_proj", y)
        x = x + linear(f"h.{i}.mlp.c_proj", gelu(linear(f"h.{i}.mlp.c_fc", norm(f"h.{i}.ln_2", x))))
    return norm("ln_f", x) @ w["wte.weight"].T


@pytest.fixture
def save(tmp_path):
    def save(content):
        torch.save(content, tmp_path / "ckpt.pt")
        return tmp_path / "ckpt.pt"

    return save


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [True, False])
def test_the_model_is_nanogpts_with_gpt2s_gelu(save, prefix, bias):
    content = checkpoint(prefix, bias=bias)
    model = import_nanogpt(save(content))
    tokens = torch.randint(30, (12,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = nanogpt_logits(content, tokens, lambda x: F.gelu(x, approximate="tanh"))
        assert (model(tokens[None])[0] - expected).abs().max() < 1e-4


def test_how_much_the_exact_gelu_differs_is_measured(save):
    content = checkpoint()
    model = import_nanogpt(save(content))
    tokens = torch.randint(30, (4, 12), generator=torch.Generator().manual_seed(0))
    exact = torch.stack([nanogpt_logits(content, row, F.gelu) for row in tokens])
    with torch.inference_mode():
        expected = (model(tokens) - exact).abs().max().item()
    assert gelu_difference(model) == (
        pytest.approx(expected, rel=0.05),
        pytest.approx(exact.std().item(), rel=1e-3),
    )
    assert expected > 1e-4


def test_the_command_writes_a_gpt2_folder_and_tells_of_the_gelu(save, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    path = save(checkpoint("_orig_mod."))
    assert main(["import-nanogpt", str(path), str(tmp_path / "new" / "gpt2")]) == 0
    output = capsys.readouterr().out
    assert "nanoGPT computes the exact GELU" in output
    assert "no tokenizer written" in output
    model, tokenizer = gptmini.load(tmp_path / "new" / "gpt2")
    assert tokenizer is None
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "gpt2").eval()
    tokens = torch.arange(12)[None]
    with torch.inference_mode():
        assert (model(tokens) - theirs(tokens).logits).abs().max() < 1e-4
    assert main(["import-nanogpt", str(path), str(tmp_path / "new" / "gpt2")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_rows_that_pad_gpt2s_vocabulary_are_dropped(save):
    model = import_nanogpt(save(checkpoint(vocab_size=50304, n_layer=1)))
    assert model.config.vocab_size == 50257


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_that_would_execute_something_is_refused_and_executes_nothing(save, capsys):
    with pytest.raises(UserError, match="is not read in any other way") as refusal:
        import_nanogpt(save(checkpoint() | {"config": Harmful()}))
    assert "\n" not in str(refusal.value)
    assert capsys.readouterr().out == ""


def test_what_is_no_nanogpt_checkpoint_is_one_line(save, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        import_nanogpt(tmp_path / "nowhere.pt")
    buffer = io.BytesIO()
    torch.save(checkpoint(), buffer)
    (tmp_path / "half.pt").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"model": Harmful()}))
    for name in ("half.pt", "empty.pt", "old.pt"):
        with pytest.raises(UserError, match="is damaged, and is not read in any other way") as refusal:
            import_nanogpt(tmp_path / name)
        assert "\n" not in str(refusal.value)
    for content, message in [
        ({"weights": 1}, "it has no model_args and model"),
        ([1, 2], "it has no model_args and model"),
        (checkpoint() | {"model": {}}, r"tensor h\.0\.attn\.c_attn\.bias is missing"),
        (checkpoint() | {"model_args": ARGS | {"n_layer": 10**9}}, "n_layer = 1000000000"),
        (checkpoint() | {"model_args": ARGS | {"n_layer": 3}}, "is missing"),
        (checkpoint() | {"model_args": {}}, "n_layer"),
    ]:
        with pytest.raises(UserError, match=f"ckpt.pt: not a checkpoint of nanoGPT: .*{message}") as refusal:
            import_nanogpt(save(content))
        assert "\n" not in str(refusal.value)
