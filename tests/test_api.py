"""The public names of `gptmini`, and the calls of the contract from end to end on a tiny model."""

import ast
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import gptmini
from gptmini.errors import UserError

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
    blocks = [node for node in PUBLIC.body if isinstance(node, ast.If)]
    (block,) = (node for node in blocks if ast.unparse(node.test) == "TYPE_CHECKING")
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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["1000", "1"]),
        ({"GOMP_SPINCOUNT": "7"}, ["7", "1"]),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, [None, None]),
    ],
)
def test_threads_spin_shortly_unless_the_user_says_how_long(given, expected):
    names = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    code = f"import json, os, gptmini; print(json.dumps([os.environ.get(name) for name in {names}]))"
    rest = {name: value for name, value in os.environ.items() if name not in (*names, "OMP_WAIT_POLICY")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=rest | given)
    assert json.loads(run.stdout) == expected


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


@pytest.fixture(scope="module")
def model():
    config = gptmini.GPTConfig(vocab_size=257, n_layer=1, n_head=2, n_embd=8, context_length=8)
    return gptmini.GPT(config).eval()


TOKENS, TOKENIZER = torch.tensor([[1, 2, 3]]), gptmini.Tokenizer.train("", "bytes")
TEXT_CALLS = {"generate_text": gptmini.generate_text, "stream": gptmini.stream}
FILE = __file__
MISTAKES = {
    "generate stop": (
        lambda m: gptmini.generate(m, TOKENS, stop=["a"]),
        "unknown key stop; did you mean stop_token, or stop (strings) of generate_text?",
    ),
    "generate do_sample": (
        lambda m: gptmini.generate(m, TOKENS, do_sample=False),
        "unknown key do_sample; did you mean temperature (0 takes the likeliest token)?",
    ),
    "generate max_length": (
        lambda m: gptmini.generate(m, TOKENS, max_length=3),
        "unknown key max_length; did you mean max_new_tokens?",
    ),
    "generate eos_token_id": (
        lambda m: gptmini.generate(m, TOKENS, eos_token_id=3),
        "unknown key eos_token_id; did you mean stop_token of generate?",
    ),
    "generate num_beams": (
        lambda m: gptmini.generate(m, TOKENS, num_beams=3), "unknown key num_beams"
    ),
    "generate_text num_return_sequences": (
        lambda m: gptmini.generate_text(m, TOKENIZER, "a", num_return_sequences=3),
        "unknown key num_return_sequences; did you mean num_samples of generate_text?",
    ),
    **{
        f"{name} {option}": (
            lambda m, call=call, option=option, value=value: call(m, TOKENIZER, "a", **{option: value}),
            f"{option} = {value}",
        )
        for name, call in TEXT_CALLS.items()
        for option, value in (("max_new_tokens", -1), ("temperature", -1.0), ("seed", -1), ("top_k", -1))
    },
    "generate_text swapped": (
        lambda m: gptmini.generate_text(TOKENIZER, m, "a"), "needs the model's tokenizer, not GPT"
    ),
    "stream of no model": (lambda m: gptmini.stream(None, TOKENIZER, "a"), "model is a NoneType"),
    "stream stop_token": (
        lambda m: gptmini.stream(m, TOKENIZER, "a", stop_token=3),
        "did you mean stop (strings), or stop_token of generate?",
    ),
    "block_size": (
        lambda m: gptmini.GPTConfig(block_size=3), "unknown key block_size; did you mean context_length?"
    ),
    "n_layers": (lambda m: gptmini.GPTConfig(n_layers=3), "unknown key n_layers; did you mean n_layer?"),
    "hidden_size": (
        lambda m: gptmini.Config(model={"hidden_size": 3}),
        "unknown key model.hidden_size; did you mean model.n_embd?",
    ),
    "learning_rate": (
        lambda m: gptmini.Config(optim={"learning_rate": 1e-3}),
        "unknown key optim.learning_rate; did you mean optim.lr?",
    ),
    "a copy with a wrong key": (
        lambda m: m.config.model_copy(update={"n_heads": 4}), "unknown key n_heads; did you mean n_head?"
    ),
    "a copy with a wrong value": (
        lambda m: m.config.model_copy(update={"n_head": 3}), "n_embd = 8 must be a multiple of n_head = 3"
    ),
    "a changed config": (
        lambda m: setattr(gptmini.Config(), "train", 3),
        "Config.train: a config does not change; make another: config.model_copy(update={'train': 3})",
    ),
    "load_config of a dict": (
        lambda m: gptmini.load_config({"train": {}}), "a YAML file, and Config(**sections) a dict, not dict"
    ),
    "train of nothing": (lambda m: gptmini.train(None), "train takes a Config, the path of a YAML"),
    "load of nothing": (lambda m: gptmini.load(None), "load takes a path or a name on the Hub, not NoneType"),
    "load of a file": (lambda m: gptmini.load(FILE), "test_api.py: is a file, but a checkpoint is a folder"),
    "GPT of a dict": (lambda m: gptmini.GPT({"vocab_size": 65}), "GPT takes a GPTConfig, GPT(GPTConf"),
    "generate with a hook that is none": (
        lambda m: gptmini.generate(m, TOKENS, logits_hook=3), "logits_hook = 3: must be a function"
    ),
    **{
        f"{name} with a hook that is none": (
            lambda m, call=call: call(m, TOKENIZER, "a", logits_hook=3), "logits_hook = 3: must be a function"
        )
        for name, call in TEXT_CALLS.items()
    },
    "train resume": (lambda m: gptmini.train({}, resume="yes"), "resume = 'yes': must be True or False"),
    "load of a pickle that is not there": (
        lambda m: gptmini.load("mine.pt"), "mine.pt: no such file; a model is a folder, and pickle"
    ),
    "load of what is not there": (
        lambda m: gptmini.load("~/none"), "none: no such folder: give a run folder"
    ),
    "save swapped": (lambda m: gptmini.save(m, "new"), "save takes a path first, not GPT"),
    "Tokenizer of nothing": (lambda m: gptmini.Tokenizer.load(None), "load takes a path, not NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_python_is_one_line_at_the_call(model, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    call, message = MISTAKES[name]
    with pytest.raises(UserError) as error:
        call(model)  # what returns an iterator must not wait for its first item
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_others_write_works_where_it_means_the_same(model, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = gptmini.generate(model, TOKENS, max_new_tokens=5, seed=3, stop_token=7)
    numpy = {"max_new_tokens": np.int64(5), "seed": np.int64(3), "stop_token": np.int64(7)}
    for off in ({}, {"top_k": 0}, {"top_k": None, "top_p": None, "min_p": None}):
        assert torch.equal(gptmini.generate(model, TOKENS, **numpy, **off), expected)
    (text,) = gptmini.generate_text(model, TOKENIZER, "a", seed=np.int64(3), stop=None, max_new_tokens=5)
    assert "a" + "".join(gptmini.stream(model, TOKENIZER, "a", seed=3, max_new_tokens=5)) == text
    gptmini.save("~/model", model, TOKENIZER)
    assert gptmini.load("~/model", device=torch.device("cpu"))[0].config == model.config
    copy = model.config.model_copy(update={"n_head": 4})
    assert (copy.n_head, copy.n_embd, copy.model_fields_set) == (4, 8, model.config.model_fields_set)


def test_tools_that_ask_a_model_for_its_config_as_transformers_have_it_find_one(model):
    assert model.config.to_dict().get("tie_word_embeddings") is True  # as peft does before it merges
