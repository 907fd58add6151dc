"""What the README tells people to type works."""

import re
from pathlib import Path

import pytest
import torch

import gptmini
from gptmini.cli.main import main
from gptmini.evaluation import summary
from gptmini.planning import autoconfig

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


def test_the_line_that_plans_gpt2_xl_prints_its_size(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (words,) = re.findall(r"^gptmini (plan configs/.*?)\n```", README, re.DOTALL | re.MULTILINE)
    assert main(words.replace("\\\n", "").split()) == 0
    assert "1,557,611,200" in capsys.readouterr().out


def test_the_lines_without_a_config_train_generate_and_evaluate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = next(block for block in blocks("") if "--minutes" in block).splitlines()
    train, generate, evaluate = (line.removeprefix(".venv/bin/gptmini ") for line in lines)
    Path("my_text.txt").write_text("It was a bright cold day in April, and the clocks struck. " * 300)
    monkeypatch.setattr(autoconfig, "_tokens_per_second", lambda size, runtime: 1e9 / size.parameters)
    monkeypatch.setattr(autoconfig, "dry_run", lambda *_: (100.0, 0.0))
    monkeypatch.setattr(summary, "SAMPLE_TOKENS", 8)
    assert main([*train.split(), "--train.sample-interval", "null", "--quiet"]) == 0
    assert main([*generate.replace('"', "").split(), "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("Once")
    assert main(evaluate.split()) == 0
    assert "characters: " in capsys.readouterr().out


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
