"""The terminal session: in process with scripted lines, and in a real pseudo-terminal with a real Ctrl-C."""

import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptmini.config import GPTConfig, TokenizerConfig
from gptmini.data.tokenizer import build_tokenizer
from gptmini.errors import UserError
from gptmini.generate import generate_text
from gptmini.interactive import Session, visible
from gptmini.model import GPT
from gptmini.sampling import SamplingOptions


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=257, n_layer=1, n_head=2, n_embd=16, context_length=16)).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TokenizerConfig(kind="bytes"), None)


@pytest.fixture
def screen():
    return []


@pytest.fixture
def session(model, tokenizer, screen):
    return Session(
        model, tokenizer, SamplingOptions(), max_new_tokens=12, seed=5, write=lambda text: screen.append(text)
    )


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


@given(st.text())
def test_no_control_character_reaches_the_terminal(text):
    shown = visible(text)
    assert not any(
        unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown if c not in "\n\t"
    )
    shown.encode()  # lone surrogates are escaped too


def test_plain_text_is_shown_as_it_is():
    assert visible("Größe, 日本語, naïve  ½\n\t“quoted” 😀") == "Größe, 日本語, naïve  ½\n\t“quoted” 😀"
    assert visible("\x1b]0;title\x07 \r \u202e \u2028") == r"\x1b]0;title\x07 \r \u202e \u2028"
