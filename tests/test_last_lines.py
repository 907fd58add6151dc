"""The last lines of `gptmini train`: a comparison in words, and a command that generates."""

import os
import re
import shlex
import shutil
import sys

import pytest

from gptmini.cli.main import main
from gptmini.config import DataConfig
from gptmini.data.tokenizers import Tokenizer
from gptmini.evaluation import last_lines as module
from gptmini.evaluation.first_line import first_line
from gptmini.evaluation.last_lines import last_lines

LINE = "It's the first line, and says $HOME `x`"
TEXT = f"- a list\n\n{LINE}\n" + "".join(f"Line {i} says that {i} and {i} are {2 * i}.\n" for i in range(100))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a text and a run on it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("last")
        patch.setenv("GPTMINI_CACHE_DIR", str(folder / "cache"))
        patch.chdir(folder)
        (folder / "text.txt").write_text(TEXT, encoding="utf-8")
        assert train("--quiet") == 0
        yield folder


def train(*more):
    args = "train --data.corpus text.txt --tokenizer.kind bytes --model.n-layer 1 --model.n-head 2"
    args += " --model.n-embd 16 --model.context-length 128 --train.max-steps 4 --train.batch-size 4"
    args += " --runtime.device cpu --runtime.threads 1 --train.out-dir"
    return main([*args.split(), "runs/a run", *more])


@pytest.fixture
def there(folder, monkeypatch):
    monkeypatch.setenv("GPTMINI_CACHE_DIR", str(folder / "cache"))
    monkeypatch.chdir(folder)
    return folder


def test_the_run_compares_itself_and_its_command_generates(there, capsys):
    assert train("--resume") == 0
    *_, compared, command = capsys.readouterr().out.splitlines()
    words = r"(better|as good as|worse)( than)? (gzip|xz|5-gram) \(\d\.\d\d\)"
    assert re.match(rf"\d\.\d\d bits per byte of validation text: {words}", compared)
    for name in ("gzip", "xz", "5-gram"):
        assert compared.count(name) == 1
    program = f"generate from it: {sys.executable} -m gptmini "
    assert command.startswith(program)
    pasted = shlex.split(command.removeprefix(program))
    assert pasted == ["generate", "runs/a run", "--prompt", LINE]
    assert main([*pasted, "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith(LINE)


def test_quiet_runs_and_other_ranks_print_none(there, monkeypatch, capsys):
    assert train("--resume", "--quiet") == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "1")
    assert train("--resume") == 0
    assert "generate from it" not in capsys.readouterr().out


def test_where_comparing_would_take_long_the_command_for_it_is_printed(there, monkeypatch):
    monkeypatch.setattr(module, "BYTES_PER_SECOND", 100)  # as if the text were long
    compare, _ = last_lines(there / "runs" / "a run")
    program, _, args = compare.partition(" -m gptmini ")
    assert program.startswith("compare it with gzip, xz and a 5-gram model: ")
    assert shlex.split(args) == ["evaluate", str(there / "runs" / "a run")]


@pytest.mark.parametrize("loss", ["text", "metrics", "checkpoints", "config"])
def test_what_is_gone_is_left_out(there, loss):
    gone = {"text": "text.txt", "metrics": "runs/a run/metrics.jsonl"}.get(loss, "runs/a run/" + loss)
    gone += ".yaml" if loss == "config" else ""
    os.rename(there / gone, there / "elsewhere")
    try:
        *compared, command = last_lines(there / "runs" / "a run")
    finally:
        os.rename(there / "elsewhere", there / gone)
    assert compared == []
    assert ("--prompt" in command) == (loss == "metrics")


def test_a_damaged_log_costs_the_comparison_only(there, tmp_path):
    shutil.copytree(there / "runs" / "a run", tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write("{}\n")
    (command,) = last_lines(tmp_path / "run")
    assert command.endswith(f" --prompt {shlex.quote(LINE)}")


@pytest.mark.parametrize(
    ("called", "which", "printed"),
    [
        ("some/bin/gptmini", "some/bin/gptmini", "gptmini"),
        (".venv/bin/gptmini", "some/bin/gptmini", ".venv/bin/gptmini"),
        ("my folder/gptmini", None, "'my folder/gptmini'"),
        ("scripts/train.py", None, f"{shlex.quote(sys.executable)} -m gptmini"),
    ],
)
def test_the_command_is_called_as_the_user_called_it(there, monkeypatch, called, which, printed):
    monkeypatch.setattr(sys, "argv", [called])
    monkeypatch.setattr(module.shutil, "which", lambda name: which)
    *_, command = last_lines(there / "runs" / "a run")
    assert command.startswith(f"generate from it: {printed} generate ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "# A heading\nshort\nThe first sentence stands here.\nThe second one.\n",
            "The first sentence stands here.",
        ),
        ("x = {'key': [1, 2, 3]}\ny = 5\n", "x = {'key': [1, 2, 3]}"),
        ("word " * 100, "word " * 11 + "word"),
        ("a" * 100, "a" * 60),
        ("- one\n* two\n\x1b[31mred alert is on\n", ""),
        ("  اللغة العربية هي أكثر اللغات السامية تحدثا\n", "اللغة العربية هي أكثر اللغات السامية تحدثا"),
    ],
)
def test_the_first_line_is_one_that_a_prompt_can_be(tmp_path, text, line):
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    data = DataConfig(corpus=(str(tmp_path / "text.txt"),))
    tokenizer = Tokenizer.train(text * 5, kind="bytes")
    assert first_line(data, tokenizer, 512) == line
    assert len(tokenizer.encode(first_line(data, tokenizer, 16))) <= 8
    assert line.startswith(first_line(data, tokenizer, 16))
