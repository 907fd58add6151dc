"""The public names of `gptmini`, and the calls of the contract from end to end on a tiny model."""

import ast
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gptmini

PUBLIC = ast.parse(Path(gptmini.__file__).read_text(encoding="utf-8"))


def test_the_public_names_are_those_of_the_contract():
    assert set(gptmini.__all__) >= {
        "GPT",
        "GPTConfig",
        "Config",
        "load_config",
        "Tokenizer",
        "load",
        "train",
        "generate",
        "generate_text",
        "stream",
        "evaluate",
        "save",
        "record_attention",
    }


@pytest.mark.parametrize("name", gptmini.__all__)
def test_a_public_name_can_be_imported_and_says_what_it_does(name):
    names = {}
    exec(f"from gptmini import {name}", names)
    assert names[name].__doc__.strip()
    assert names[name].__doc__ != getattr(type(names[name]), "__doc__", None)
    assert name in dir(gptmini)


def test_type_checkers_see_the_same_names_from_the_same_modules():
    (block,) = (node for node in PUBLIC.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == gptmini._MODULE_OF


def test_star_imports_the_public_names_and_nothing_else():
    names = {}
    exec("from gptmini import *", names)
    assert set(names) - {"__builtins__"} == set(gptmini.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'generator'"):
        _ = gptmini.generator


def test_importing_gptmini_alone_imports_no_torch_numpy_or_pydantic():
    code = "import sys, gptmini; print(*sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 60


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The result of training a tiny model from a dict, in a new current directory."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    config = {
        "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 16},
        "data": {"corpus": "text.txt"},
        "tokenizer": {"kind": "bytes"},
        "train": {"out_dir": "runs/tiny", "max_steps": 3, "batch_size": 2, "eval_interval": 1},
    }
    return gptmini.train(config, quiet=True)


def test_train_returns_what_came_of_it(trained):
    assert trained.run_dir == Path("runs/tiny")
    assert trained.step == 3
    assert trained.best_val_loss <= trained.val_loss
    best = trained.run_dir / f"checkpoints/step-{trained.best_step:08d}/training/state.json"
    assert json.loads(best.read_text(encoding="utf-8"))["val_loss"] == trained.best_val_loss
    config = gptmini.load_config(trained.run_dir / "config.yaml")
    assert isinstance(config, gptmini.Config)
    assert config.train.max_steps == 3


def test_a_trained_model_loads_generates_is_evaluated_and_saved(trained):
    model, tokenizer = gptmini.load(trained.run_dir, device="cpu")
    assert isinstance(model, gptmini.GPT)
    assert isinstance(model.config, gptmini.GPTConfig)
    assert isinstance(tokenizer, gptmini.Tokenizer)

    options = {"max_new_tokens": 30, "seed": 1, "temperature": 0.9}
    (text,) = gptmini.generate_text(model, tokenizer, "The", **options)
    assert "The" + "".join(gptmini.stream(model, tokenizer, "The", **options)) == text
    tokens = torch.tensor([tokenizer.encode("The")])
    longer = gptmini.generate(model, tokens, **options)
    assert longer.shape == (1, 33)
    assert torch.equal(longer[:, :3], tokens)

    found = gptmini.evaluate(model, tokenizer, TEXT)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.tokens == len(tokenizer.encode(TEXT)) - 1
    assert gptmini.evaluate(model, tokenizer, Path("text.txt")) == found

    gptmini.save("copy", model, tokenizer)
    copy, its_tokenizer = gptmini.load("copy", device="cpu")
    assert gptmini.evaluate(copy, its_tokenizer, TEXT) == found
    assert next(iter(gptmini.generate_text(copy, its_tokenizer, "The", **options))) == text


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_rounded_weights_predict_nearly_as_well(trained, precision):
    exact, tokenizer = gptmini.load(trained.run_dir, device="cpu")
    rounded, _ = gptmini.load(trained.run_dir, device="cpu", precision=precision)
    loss = gptmini.evaluate(exact, tokenizer, TEXT).loss
    rounded_loss = gptmini.evaluate(rounded, tokenizer, TEXT).loss
    assert rounded_loss != loss
    assert rounded_loss == pytest.approx(loss, rel=0.01)
