"""What the README tells people to type works."""

import ast
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
BLOCKS = re.findall(r"^\| `(.+?)` \| `(.+?)`, ([\w.]+) \|", README, re.MULTILINE)


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def commands(text):
    """The arguments of each `gptmini` line in a block, as the shell would split them."""
    lines = [line.partition("gptmini ")[2] for line in text.splitlines() if "bin/gptmini " in line]
    return [line.replace('"', "").split() for line in lines]


def test_the_readme_stays_short_and_names_the_test_command():
    assert README.count("\n") <= 120
    assert "\nmake test " in README


def test_the_lines_that_build_a_model_run():
    code = next(block for block in blocks("python") if "GPTConfig(" in block)
    names = {}
    exec(code, names)
    assert names["logits"].shape == (1, 64, 65)


def test_the_own_text_lines_train_generate_and_evaluate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block = next(block for block in blocks("") if "--minutes" in block)
    train, generate, evaluate, report, export = commands(block)
    Path("my_text.txt").write_text("It was a bright cold day in April, and the clocks struck. " * 300)
    monkeypatch.setattr(autoconfig, "_tokens_per_second", lambda size, runtime: 1e9 / size.parameters)
    monkeypatch.setattr(autoconfig, "dry_run", lambda *_: (100.0, 0.0))
    monkeypatch.setattr(summary, "SAMPLE_TOKENS", 8)
    assert main([*train, "--train.sample-interval", "null", "--quiet"]) == 0
    assert main([*generate, "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("Once")
    assert main(evaluate) == 0
    assert "characters: " in capsys.readouterr().out
    assert main(report) == 0
    assert Path("report.html").exists()
    assert main(export) == 0
    assert Path("my_text.html").stat().st_size > 100_000


def test_the_lines_that_load_a_checkpoint_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The cat sat on the mat. " * 200, encoding="utf-8")
    args = "train --data.corpus text.txt --tokenizer.kind bytes --model.n-layer 1 --model.n-head 1"
    args += " --model.n-embd 8 --model.context-length 16 --train.max-steps 1 --train.batch-size 2"
    assert main([*args.split(), "--train.out-dir", "runs/python_docs", "--quiet"]) == 0
    code = next(block for block in blocks("python") if "gptmini.load(" in block)
    exec(code, {"torch": torch, "gptmini": gptmini})
    assert capsys.readouterr().out.startswith("The ")


def test_the_readme_lists_eight_building_blocks():
    assert len(BLOCKS) + README.count("\n| broadcasting |") == 8


@pytest.mark.parametrize(("block", "path", "name"), BLOCKS)
def test_a_building_block_works_where_the_readme_says(block, path, name):
    source = (ROOT / path).read_text(encoding="utf-8")
    node = ast.parse(source)
    for part in name.split("."):
        node = next(child for child in node.body if getattr(child, "name", None) == part)
    code = [ast.unparse(decorator) for decorator in node.decorator_list] + [ast.unparse(node)]
    for word in block.replace("`", "").split(" + "):
        assert word in "\n".join(code), f"{name} in {path} has no {word}"
