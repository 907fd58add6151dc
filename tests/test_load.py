"""`load`: a checkpoint in any of its places, ready to generate from and to train further."""

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

import gptmini
from gptmini.checkpoint.store import load_model
from gptmini.cli.main import main
from gptmini.config import GPTConfig
from gptmini.errors import UserError
from gptmini.generation.precision import RoundedLinear
from gptmini.model import GPT

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


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_precision_is_that_of_every_linear_layer(folder, precision):
    model, _ = gptmini.load(folder, device="cpu", precision=precision)
    assert not any(module.training for module in model.modules())
    layer = torch.nn.Linear if precision == "fp32" else RoundedLinear
    assert sum(type(module) is layer for module in model.modules()) == 2 * 4 + 1
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


def save_with_tokenizer(folder, tokenizer, vocab_size):
    """A random model of `vocab_size` embeddings beside a tokenizer, as other programs may leave them."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=vocab_size, n_layer=2, n_head=2, n_embd=32, context_length=32))
    model.token_embedding.weight.data[257:] = 1.0
    gptmini.save(folder, model)
    tokenizer.save(folder)
    return model.eval()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_ids_that_only_pad_the_embedding_are_no_tokens_of_what_load_returns(tmp_path, precision):
    padded = save_with_tokenizer(tmp_path / "m", gptmini.Tokenizer.train("", "bytes"), 320)
    model, tokenizer = gptmini.load(tmp_path / "m", device="cpu", precision=precision)
    assert model.config.vocab_size == model(TOKENS).shape[-1] == 257
    tokens = gptmini.generate(model, TOKENS[0], max_new_tokens=200, seed=1, temperature=2)
    tokenizer.decode(tokens)
    if precision == "fp32":
        plain, _ = load_model(tmp_path / "m")
        assert torch.equal(plain.token_embedding.weight, padded.token_embedding.weight[:257])
        # a product of another width may round its last bit otherwise
        torch.testing.assert_close(plain(TOKENS), padded(TOKENS)[..., :257])
        gptmini.save(tmp_path / "again", model, tokenizer)
        assert GPT2Config.from_pretrained(tmp_path / "again").vocab_size == 257


def test_a_tokenizer_may_have_special_tokens_that_the_model_lacks_and_no_others(tmp_path, capsys):
    tokenizer = gptmini.Tokenizer.train("", "bytes")
    save_with_tokenizer(tmp_path / "bytes", tokenizer, 256)  # without end of text
    model, tokenizer = gptmini.load(tmp_path / "bytes", device="cpu")
    (text,) = gptmini.generate_text(model, tokenizer, "a", max_new_tokens=5, seed=1)
    assert text.startswith("a")
    assert gptmini.evaluate(model, tokenizer, "é").loss > 0
    gptmini.save(tmp_path / "again", model, tokenizer)
    assert main(["export", str(tmp_path / "bytes"), "--output", str(tmp_path / "m.gguf")]) == 2
    assert "257 tokens and the embedding 256 rows, but GGUF needs a row for each" in capsys.readouterr().err

    save_with_tokenizer(tmp_path / "few", tokenizer, 200)
    refused = (
        r"few: the tokenizer has 257 tokens, but the model's embedding only 200 rows: they do not belong"
    )
    for read in (gptmini.load, load_model):
        with pytest.raises(UserError, match=refused):
            read(tmp_path / "few")
    folder = str(tmp_path / "few")
    for arguments in (
        ["generate", "--prompt", "a"],
        ["evaluate", "--corpus", __file__],
        ["export"],
        ["verify"],
    ):
        assert main([arguments[0], folder, *arguments[1:]]) == 2
        error = capsys.readouterr().err
        assert "only 200 rows" in error
        assert error.count("\n") == 1


def test_a_mistyped_folder_is_named_as_given_and_not_looked_for_on_the_hub(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    message = "nono: no such folder: give a run folder"
    with pytest.raises(UserError, match=f"^{message}"):
        gptmini.load("./nono")
    assert main(["generate", "nono"]) == 2
    assert capsys.readouterr().err.startswith(f"gptmini: {message}")
    assert main(["generate", str(tmp_path / "nono")]) == 2
    assert capsys.readouterr().err.startswith(f"gptmini: {tmp_path / message}")
