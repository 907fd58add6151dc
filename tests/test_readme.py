"""What the README tells people to type works."""

import re
from pathlib import Path

import pytest
import torch

import gptmini
from gptmini.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_three_lines_that_build_a_model_run():
    code = next(block for block in blocks("python") if "GPTConfig(" in block)
    names = {}
    exec(code, names)
    assert names["logits"].shape == (1, 64, 65)


def test_the_own_text_lines_train_and_generate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    copy, train, generate = next(
        block for block in blocks("") if "cp configs/my_text.yaml" in block
    ).splitlines()
    text = "It was a bright cold day in April, and the clocks were striking thirteen, number {}.\n"
    Path("mine.txt").write_text("".join(text.format(i) for i in range(400)), encoding="utf-8")
    source, target = copy.split("#")[0].split()[1:]
    config = (ROOT / source).read_text(encoding="utf-8").replace("my_text.txt", "mine.txt")
    Path(target).write_text(config, encoding="utf-8")
    words = train.removeprefix(".venv/bin/gptmini ").split()
    assert main([*words, "--train.max-steps", "3", "--train.sample-interval", "null"]) == 0
    capsys.readouterr()
    words = generate.removeprefix(".venv/bin/gptmini ").replace('"', "").split()
    assert main([*words, "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("Once")


def test_the_lines_that_load_a_checkpoint_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The cat sat on the mat. " * 200, encoding="utf-8")
    words = "train --data.corpus text.txt --tokenizer.kind bytes --model.n-layer 1 --model.n-head 1"
    words += " --model.n-embd 8 --model.context-length 16 --train.max-steps 1 --train.batch-size 2"
    assert main([*words.split(), "--train.out-dir", "runs/python_docs", "--quiet"]) == 0
    code = next(block for block in blocks("python") if "gptmini.load(" in block)
    exec(code, {"torch": torch, "gptmini": gptmini})
    assert capsys.readouterr().out.startswith("The ")


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"(?:configs|docs|gptmini|scripts)/[\w/]+\.\w+", README)))
)
def test_every_file_that_the_readme_names_exists(path):
    assert (ROOT / path).exists()
