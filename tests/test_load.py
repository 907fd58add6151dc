"""`load`: a checkpoint in any of its places, ready to generate from and to train further."""

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

import gptmini
from gptmini.checkpoint.store import load_model
from gptmini.errors import UserError
from gptmini.generation.cpu_linear import BF16Linear, Int8Linear, PartitionedLinear

TOKENS = torch.tensor([[3, 1, 4, 1, 5]])


def save_gpt2(folder):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=61, n_positions=16, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0,
        initializer_range=0.3, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.mark.parametrize("form", [str, Path])
def test_a_folder_is_given_as_text_or_path_with_or_without_a_tilde(folder, form, monkeypatch):
    expected, _ = load_model(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    for place in (folder, Path("~") / folder.name):
        model, tokenizer = gptmini.load(form(place), device="cpu")
        assert tokenizer is None
        torch.testing.assert_close(model(TOKENS), expected(TOKENS), atol=1e-5, rtol=1e-4)


def test_a_name_on_the_hub_is_found_in_its_local_cache(folder, tmp_path, monkeypatch):
    repository = tmp_path / "models--somebody--tiny-gpt2"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    save_gpt2(repository / "snapshots" / "0123abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model, _ = gptmini.load("somebody/tiny-gpt2", device="cpu")
    torch.testing.assert_close(model(TOKENS), load_model(folder)[0](TOKENS), atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="somebody/other: no such folder, and the Hugging Face Hub gives no"):
        gptmini.load("somebody/other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "precision = 'fp16' must be one of fp32, bf16, int8"),
        ({"device": "gpu"}, "device = 'gpu' must be auto, cpu, cuda"),
        ({"device": "cuda:77"}, "device cuda:77 was asked for, but this machine has"),
    ],
)
def test_what_cannot_be_is_one_line(folder, options, message):
    with pytest.raises(UserError, match=message) as error:
        gptmini.load(folder, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("precision", "layer"), [("fp32", PartitionedLinear), ("bf16", BF16Linear), ("int8", Int8Linear)]
)
def test_on_a_cpu_every_linear_layer_is_a_fast_one(folder, precision, layer):
    model, _ = gptmini.load(folder, device="cpu", precision=precision)
    assert not any(module.training for module in model.modules())
    assert sum(isinstance(module, layer) for module in model.modules()) == 2 * 4 + 1
    assert not any(type(module) is torch.nn.Linear for module in model.modules())
    text = gptmini.generate(model, TOKENS, max_new_tokens=20, temperature=0)
    if precision == "fp32":
        plain, _ = load_model(folder)
        assert torch.equal(text, gptmini.generate(plain, TOKENS, max_new_tokens=20, temperature=0))


def test_a_float32_model_trains_and_copies_as_the_plain_one(folder):
    plain, fast = load_model(folder)[0], gptmini.load(folder, device="cpu")[0]
    assert list(fast.state_dict()) == list(plain.state_dict())
    before = fast(TOKENS).detach()
    copied = copy.deepcopy(fast)
    for model in (plain, fast):
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
        F.cross_entropy(model(TOKENS[:, :-1]).flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
        optimizer.step()
        model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(fast(TOKENS), plain(TOKENS), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(copied(TOKENS), before, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(fast(TOKENS), before, atol=1e-2)
