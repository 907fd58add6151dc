"""A run outlives its terminal, and no text that others wrote controls it."""

import contextlib
import io
import os
import re
import shlex
import struct
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gptmini
from gptmini.cli.main import main
from gptmini.terminal import guard_streams, visible

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs /dev/full and pseudo-terminals")
GPTMINI = f"{shlex.quote(sys.executable)} -m gptmini"


@pytest.fixture
def config_file(config_file):
    """A run of 20 steps, each with its line."""
    longer = config_file.read_text().replace("max_steps: 4", "max_steps: 20")
    config_file.write_text(longer.replace("eval_interval: 2", "log_interval: 1"))
    return config_file


def shell(command, cwd):
    """The exit code of the first command of a pipe, and what is written to standard output and error."""
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, cwd=cwd
    )
    return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def dead_stream(kind):
    """A stream that takes nothing."""
    if kind == "full":
        stream = open("/dev/full", "w")  # noqa: SIM115  # closed below
    elif kind == "closed":
        stream = io.StringIO()
        stream.close()
    else:
        reader, writer = os.pipe()
        os.close(reader)
        stream = os.fdopen(writer, "w")
    try:
        yield stream
    finally:
        with contextlib.suppress(OSError):
            stream.close()


@posix
@pytest.mark.parametrize("err", ["full", "works"])
@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("full", "No space left on device"),
        ("broken", "Broken pipe"),
        ("closed", ""),
    ],
)
def test_a_run_continues_without_its_words(out, reason, err, config_file, tmp_path, capsys):
    with contextlib.ExitStack() as streams:
        streams.enter_context(contextlib.redirect_stdout(streams.enter_context(dead_stream(out))))
        if err == "full":
            streams.enter_context(contextlib.redirect_stderr(streams.enter_context(dead_stream(err))))
        assert main(["train", str(config_file)]) == 0
    assert (tmp_path / "run" / "checkpoints" / "step-00000020" / "manifest.json").exists()
    notice = f"standard output: {reason}; the run continues without it\n" if reason else ""
    assert capsys.readouterr().err == (notice if err == "works" else "")


@posix
def test_a_run_without_any_stream_ends_well(config_file, tmp_path):
    assert shell(f"{GPTMINI} train tiny.yaml <&- >&- 2>&-", tmp_path) == (0, "", "")
    assert (tmp_path / "run" / "checkpoints" / "step-00000020" / "manifest.json").exists()


@posix
def test_train_in_python_continues_too(config_file):
    with dead_stream("full") as full, contextlib.redirect_stdout(full):
        assert gptmini.train(config_file).step == 20


@posix
@pytest.mark.parametrize(
    "command", ["prepare tiny.yaml", "plan tiny.yaml", "configs", "completion bash", "train --help", "--help"]
)
def test_elsewhere_a_full_disk_is_one_line_that_names_the_stream(
    command, config_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with dead_stream("full") as full, contextlib.redirect_stdout(full):
        assert main(command.split()) == 1
    assert capsys.readouterr().err == "gptmini: standard output: No space left on device\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("generate run --prompt -", "--prompt = -: standard input is closed"),
        ("generate run --interactive", "--interactive reads what you type, but standard input is closed"),
        (
            "prepare --data.corpus -",
            "standard input is closed, but is to be read: pipe a text in, as in `< my.txt`",
        ),
    ],
)
def test_a_closed_standard_input_is_one_line(args, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert main(args.split()) == 2
    assert capsys.readouterr() == ("", f"gptmini: {message}\n")


@posix
def test_a_run_whose_terminal_closes_saves_and_exits_with_75(config_file, tmp_path):
    import fcntl
    import termios

    command = [sys.executable, "-m", "gptmini", "train", str(config_file), "--train.max-steps", "1000000"]
    pid, terminal = os.forkpty()
    if pid == 0:
        os.execvp(command[0], command)
    size = struct.pack("HHHH", 24, 100, 0, 0)  # else there is no room for a progress bar
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the program has ended
        while b"step 1" not in shown and (block := os.read(terminal, 4096)):
            shown += block
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75, shown
    (step,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert (step / "manifest.json").exists()


@given(st.text())
def test_no_control_character_is_shown(text):
    shown = visible(text)
    assert not any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in shown if c not in "\n\t")
    assert not any(unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF") for c in shown)
    assert not any(unicodedata.bidirectional(c) in ("LRI", "RLI", "FSI", "PDI") for c in shown)
    assert visible(shown) == shown


def test_plain_text_is_shown_as_it_is():
    text = "Größe, 日本語, naïve  ½\n\t“quoted” 😀 👩\u200d💻"
    assert visible(text) == text
    assert visible("\x1b]0;title\x07 \r \u202e \u2028 \x9b") == r"\x1b]0;title\x07 \r \u202e \u2028 \x9b"


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r"


@posix
def test_escape_codes_of_a_corpus_and_a_model_do_not_reach_the_terminal(
    config_file, tmp_path, monkeypatch, in_terminal
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{HOSTILE}.txt").write_text(f"{HOSTILE} to be\n" * 60)
    train = ["train", "tiny.yaml", "--data.corpus", f"{HOSTILE}.txt", "--train.out-dir", HOSTILE]
    train += ["--tokenizer.kind", "chars", "--train.sample-interval", "10", "--optim.lr", "0.1"]
    generate = ["generate", HOSTILE, "--prompt", HOSTILE[:12], "--max-new-tokens", "60", "--seed", "1"]

    def run():
        for args in (train, generate, [*generate, "--num-samples", "2"]):
            assert main(args) == 0

    shown = in_terminal(run)
    assert "\\x1b]0;owned\\x07" in shown
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", shown)
    # A file gets what the model wrote.
    with open("raw", "w", encoding="utf-8") as raw, contextlib.redirect_stdout(raw):
        assert main(generate) == 0
    assert (tmp_path / "raw").read_bytes().startswith(HOSTILE[:12].encode())


def test_what_a_stream_cannot_encode_is_replaced(capsys):
    with guard_streams():
        print("a\udc80b")
    assert capsys.readouterr().out == "a?b\n"
