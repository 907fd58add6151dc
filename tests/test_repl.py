"""The terminal session: in process with scripted lines, and in a real pseudo-terminal with a real Ctrl-C."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptmini.checkpoint.state import Checkpoint, TrainingState
from gptmini.checkpoint.store import CheckpointStore
from gptmini.config import GPTConfig
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import UserError
from gptmini.generation.repl import Session
from gptmini.generation.sampling import SamplingOptions
from gptmini.generation.streaming import generate_text
from gptmini.model import GPT


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=257, n_layer=1, n_head=2, n_embd=16, context_length=16)).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train("", "bytes")


@pytest.fixture
def screen():
    return []


@pytest.fixture
def session(model, tokenizer, screen):
    return Session(model, tokenizer, max_new_tokens=12, seed=5, write=screen.append)


def scripted(*lines):
    """An `input` that gives these lines (or raises these exceptions), and then the end of the input."""
    rest = [*lines, EOFError()]

    def read(prompt):
        line = rest.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    return read


def test_the_first_text_is_that_of_generate(session, model, tokenizer):
    session.answer("ab")
    (expected,) = generate_text(model, tokenizer, "ab", max_new_tokens=12, seed=5)
    assert session.text == expected


def test_a_line_joins_the_text_so_far_and_the_model_reads_all_of_it(session, model, tokenizer):
    session.answer("ab")
    before = session.text
    session.answer("cd")
    (expected,) = generate_text(
        model, tokenizer, f"{before}\ncd", max_new_tokens=12, seed=6, truncate_prompt=True
    )
    assert session.text == expected


def test_enter_alone_goes_on_where_the_text_ended(session):
    session.answer("ab")
    before = session.text
    session.answer("")
    assert session.text.startswith(before)
    assert len(session.text) > len(before)


def test_clear_and_keep_off_forget(session):
    session.answer("ab")
    session.answer("/clear")
    assert session.text == ""
    session.answer("ab")
    session.answer("/keep off")
    session.answer("cd")
    assert session.text.startswith("cd")


def test_a_text_to_begin_with_is_shown_and_gone_on_from_by_enter(model, tokenizer, screen):
    session = Session(model, tokenizer, "a\x07", max_new_tokens=12, seed=5, write=screen.append, top_k=3)
    session.run(scripted(""))
    assert screen[0].endswith("\na\x07")
    (expected,) = generate_text(model, tokenizer, "a\x07", max_new_tokens=12, seed=5, top_k=3)
    assert session.text == expected


def test_two_slashes_are_text_that_begins_with_one(session):
    session.answer("//etc")
    assert session.text.startswith("/etc")


def test_speed_is_shown_on_request(session, screen):
    session.answer("ab")
    assert "tokens/s" not in "".join(screen)
    session.answer("/speed on")
    session.answer("ab")
    assert "12 tokens after" in screen[-1]
    assert "tokens/s" in screen[-1]


def test_options_can_be_changed_and_shown(session, screen):
    session.answer("/set temperature 0.25")
    session.answer("/set top-k 7")
    session.answer("/options")
    assert session.options == SamplingOptions(temperature=0.25, top_k=7)
    assert "temperature = 0.25\n" in "".join(screen)
    assert "min_p = null\n" in "".join(screen)
    session.answer("/set top_k null")
    assert session.options.top_k is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set temperature -1", "temperature = -1"),
        ("/set foo 1", "unknown key foo"),
        ("/set temperature", "no such command: /set temperature"),
        ("/dance", "no such command: /dance"),
        ("/", "no such command: /"),
        ("/keep maybe", "no such command: /keep maybe"),
    ],
)
def test_a_wrong_command_is_one_line_and_the_session_goes_on(session, screen, line, message):
    with pytest.raises(UserError):
        session.answer(line)
    session.run(scripted(line, "ab"))
    assert any(message in text and text.count("\n") == 1 for text in screen)
    assert session.text.startswith("ab")


def test_the_session_ends_with_quit_or_the_end_of_input(session):
    session.run(scripted("/quit", RuntimeError("not read")))
    session.run(scripted())


def test_ctrl_c_while_typing_gives_a_new_line_of_input(session):
    session.run(scripted(KeyboardInterrupt(), "ab"))
    assert session.text.startswith("ab")


def test_ctrl_c_stops_the_text_and_keeps_what_was_written(session, model):
    shown = []

    def write(text):
        shown.append(text)
        if len(shown) == 4:
            raise KeyboardInterrupt

    session.write = write
    model.train()
    session.run(scripted("a" * 3, "/speed on"))
    assert not model.eval().training
    assert session.text.startswith("aaa")
    assert 3 < len(session.text) < 15
    assert session.show_speed


def test_ctrl_c_leaves_the_model_in_the_mode_it_was_in(session, model):
    def write(text):
        if text != "/help lists the commands.\n":
            raise KeyboardInterrupt

    model.train()
    session.write = write
    with pytest.raises(KeyboardInterrupt):
        session.answer("a")
    assert model.training
    model.eval()


@pytest.fixture
def run_folder(tmp_path, model, tokenizer):
    state = TrainingState(
        step=1, tokens=1, config={}, data_digest="", tokenizer_digest=tokenizer.digest, environment={}
    )
    checkpoint = Checkpoint(step=1, model=model.state_dict(), optimizer={}, state=state)
    return CheckpointStore(tmp_path / "run", keep=1).save(checkpoint, model.config, tokenizer)


def read_until(terminal, wanted):
    shown = b""
    while wanted not in shown:
        shown += os.read(terminal, 4096)  # raises at the end of the program
    return shown


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a POSIX thing")
def test_ctrl_c_in_a_terminal_stops_the_text_and_not_the_session(run_folder):
    import pty

    script = Path(__file__).parent.parent / "scripts" / "generate.py"
    terminal, program_side = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, script, run_folder, "--interactive", "--max-new-tokens", "10000000"],
        stdin=program_side,
        stdout=program_side,
        stderr=program_side,
        start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(program_side)
    try:
        read_until(terminal, b"> ")
        os.write(terminal, b"/speed on\n")
        read_until(terminal, b"> ")
        os.write(terminal, b"Hello\n")
        read_until(terminal, b"Hello\r\n")
        os.read(terminal, 1)  # the text has begun, and would go on for hours
        os.kill(program.pid, signal.SIGINT)
        shown = read_until(terminal, b"> ")
        assert b" tokens after 5, " in shown
        assert b"\x1b" not in shown
        os.write(terminal, b"\x04")  # Ctrl-D
        assert program.wait(timeout=30) == 0
    finally:
        program.kill()
        program.wait()
        os.close(terminal)


def test_a_line_that_is_refused_does_not_join_the_text(session, screen):
    session.run(scripted("ab", "c\ud800", "/options"))
    assert "half of a surrogate pair" in "".join(screen)
    assert session.text.startswith("ab")
    assert "c\ud800" not in session.text
    session.answer("cd")
