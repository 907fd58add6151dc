"""The scripts in examples/ run, and do what they say."""

import runpy
from pathlib import Path

import pytest

import gptmini

EXAMPLES = Path(__file__).parent.parent / "examples"
TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 60


def example(name):
    return runpy.run_path(str(EXAMPLES / name))["main"]


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A tiny trained model, in the current directory, which is a new one."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    config = {
        "model": {"n_layer": 1, "n_head": 1, "n_embd": 16, "context_length": 16},
        "data": {"corpus": "text.txt"},
        "tokenizer": {"kind": "bytes"},
        "train": {"out_dir": "runs/tiny", "max_steps": 2, "batch_size": 2},
    }
    return gptmini.train(config, quiet=True).run_dir


def test_every_example_has_a_test():
    tested = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'example("{path.name}")' in tested


def test_train_from_python_trains_and_streams_a_text(checkpoint, capsys):
    example("train_from_python.py")("text.txt", "runs/new", max_steps=2)
    assert Path("runs/new/checkpoints/step-00000002/model.safetensors").exists()
    assert "best validation loss" in capsys.readouterr().out


def test_the_custom_sampler_writes_no_e(checkpoint, capsys):
    model, tokenizer = gptmini.load(checkpoint)
    (plain,) = gptmini.generate_text(model, tokenizer, "A ", max_new_tokens=300, seed=1, top_p=0.9)
    assert "e" in plain.lower()  # so the hook has something to ban
    text = example("custom_sampler.py")(checkpoint, "A ", max_new_tokens=300)
    assert "e" not in text.lower()
    assert len(text) > 100


def test_finetuning_lowers_the_loss_of_another_text(checkpoint):
    other = "abab " * 2000
    Path("other.txt").write_text(other, encoding="utf-8")
    before, after = example("finetune.py")(str(checkpoint), "other.txt", "runs/tuned", max_steps=40)
    assert after < before
