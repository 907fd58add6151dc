"""gptmini evaluate: which text is read, and what ends in one line."""

import contextlib
import io
import re
import shutil
import sys

import pytest
import safetensors.torch
import torch

from gptmini.cli.main import main
from gptmini.data import documents
from gptmini.data.tokenizers import CharTokenizer

TEXT = "To be, or not to be, that is the question.\n" * 60
SIZES = (
    "--model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.context-length 16 --tokenizer.kind chars "
    "--train.max-steps 2 --train.batch-size 4 --train.eval-interval 1 --runtime.device cpu "
    "--runtime.threads 1"
)


def train(corpus, out_dir, *options):
    args = [
        *SIZES.split(),
        "--quiet",
        "--data.corpus",
        str(corpus),
        "--train.out-dir",
        str(out_dir),
        *options,
    ]
    assert main(["train", *args]) == 0
    return out_dir


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on text.txt beside it, and the cache with its tokens."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GPTMINI_CACHE_DIR", "cache")
        train("text.txt", "run")
    return folder


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
    """A copy of it that a test may change, as the working directory."""
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("GPTMINI_CACHE_DIR", "cache")
    return tmp_path / "copy"


@pytest.fixture
def evaluate(capsys):
    def run(*args, code=0):
        capsys.readouterr()
        assert main(["evaluate", *map(str, args)]) == code
        out, err = capsys.readouterr()
        if code:
            assert (out, err.count("\n")) == ("", 1)
        return err if code else out

    return run


def test_a_text_that_has_changed_is_told_by_all_that_read_it(folder, evaluate, capsys):
    step = folder / "run" / "checkpoints" / "step-00000002"
    (folder / "text.txt").write_text(TEXT.replace("question", "unknown"))
    says = (
        "data.corpus = text.txt: text or split are not what the run was started with; put the old text back"
    )
    for checkpoint in ("run", step):
        assert re.search(f"{says}.* \\(evaluate --corpus reads another text", evaluate(checkpoint, code=2))
    assert says in evaluate("run", "--corpus", "text.txt", "--memorization", code=2)
    (folder / "text.txt").write_text(TEXT.replace("question", "not quite so"))
    assert "xz " not in evaluate("run", "--corpus", "text.txt")  # the training text is another one now
    assert main(["train", "run/config.yaml", "--resume", "--train.max-steps", "3"]) == 2
    assert says in capsys.readouterr().err
    pytest.importorskip("vl_convert")
    assert main(["report", "run"]) == 0
    assert says in capsys.readouterr().out


def test_a_config_that_strays_into_a_step_is_not_the_runs(folder, evaluate):
    step = "run/checkpoints/step-00000002"
    expected = evaluate(step)
    (folder / "other.txt").write_text("question " * 300)
    config = (folder / "run" / "config.yaml").read_text().replace("text.txt", "other.txt")
    (folder / step / "config.yaml").write_text(config)
    assert evaluate(step) == expected


def test_a_text_that_is_gone_is_told_with_what_to_do(folder, evaluate):
    (folder / "text.txt").unlink()
    line = evaluate("run", code=2)
    assert re.search(r"corpus = text\.txt: no such file .* \(evaluate --corpus reads another text\)$", line)


def test_another_split_is_told_too(folder, evaluate):
    config = folder / "run" / "config.yaml"
    config.write_text(config.read_text().replace("val_fraction: 0.1", "val_fraction: 0.2"))
    assert "text or split are not what the run was started with" in evaluate("run", code=2)


def test_another_text_is_read_by_the_settings_of_the_run(folder, evaluate, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"story": {"To be, or not. " * 40!r}}}'.replace("'", '"'))
    train(tmp_path / "a.jsonl", "other", "--data.text-field", "story", "--data.errors", "ignore")
    (tmp_path / "b.jsonl").write_bytes(b'{"story": "To be"}\n{"story": "not \\ud800to be"}')
    assert "tokens         14\n" in evaluate("other", "--corpus", tmp_path / "b.jsonl")
    line = evaluate("run", "--corpus", tmp_path / "b.jsonl", code=2)
    assert "has no text in the field text: it has story (" in line
    assert "evaluate's --text-field" in line
    (tmp_path / "b.jsonl").write_text('{"story": "To be"}\n{"story": "not to be"}')
    of_b = ("--corpus", tmp_path / "b.jsonl", "--text-field", "story")
    assert evaluate("run", *of_b).startswith("loss ")
    assert "--text-field is for the text that --corpus names" in evaluate("run", *of_b[2:], code=2)


@pytest.fixture
def pipe(monkeypatch):
    """A function that pipes bytes into this process; None closes its standard input."""

    def forget():
        if documents._standard_input.cache_info().currsize:
            documents._standard_input().close()
        documents._standard_input.cache_clear()

    def pipe(data):
        forget()
        raw = io.BytesIO(data) if isinstance(data, bytes) else data
        monkeypatch.setattr(sys, "stdin", raw and io.TextIOWrapper(raw))

    yield pipe
    forget()


class OpenPipe(io.BytesIO):
    def read(self, *args):
        raise AssertionError("this would wait for ever")


def test_a_run_from_standard_input_reads_it_only_where_its_own_text_is_needed(folder, evaluate, pipe, capsys):
    pipe(TEXT.encode())
    train("-", "piped")
    pipe(OpenPipe())
    assert "xz " not in evaluate("piped", "--corpus", "text.txt")
    with contextlib.suppress(ImportError):
        import vl_convert  # noqa: F401

        assert main(["report", "piped"]) == 0
        assert "its text came from standard input" in capsys.readouterr().out
    # piped in again, it is the run's own text
    pipe(TEXT.encode())
    assert "xz " in evaluate("piped")
    pipe(b"To be, or not to be, or be. " * 60)
    assert "text or split are not what" in evaluate("piped", code=2)


def test_another_text_can_be_piped_in(folder, evaluate, pipe):
    pipe(b"To be, or not")
    assert "tokens         12\n" in evaluate("run", "--corpus", "-")
    pipe(None)
    assert "standard input is closed" in evaluate("run", "--corpus", "-", code=2)


def gpt2_directory(folder, change):
    """The run's last step as a GPT-2 directory without a manifest, its weights changed."""
    step = folder / "run" / "checkpoints" / "step-00000002"
    shutil.copytree(step, folder / "gpt2", ignore=shutil.ignore_patterns("training", "manifest.json"))
    weights = safetensors.torch.load_file(folder / "gpt2" / "model.safetensors")
    safetensors.torch.save_file(change(weights), folder / "gpt2" / "model.safetensors", {"format": "pt"})
    return folder / "gpt2"


def test_a_model_without_a_run_says_what_it_lacks(folder, evaluate):
    directory = gpt2_directory(folder, dict)
    assert "no config.yaml of a run beside it: name a text by --corpus" in evaluate(directory, code=2)
    message = evaluate(directory, "--corpus", "text.txt", "--memorization", code=2)
    assert "no config.yaml of a run beside it: --memorization needs its training text" in message


@pytest.mark.parametrize(
    ("value", "reason"),
    [(torch.nan, "ln_1.bias holds NaN or inf"), (3e38, "the loss is (nan|-?inf), as its")],
)
def test_weights_that_give_no_finite_loss_are_damaged(folder, evaluate, value, reason):
    def change(weights):
        name = next(name for name in weights if name.endswith("h.0.ln_1.bias"))
        return {**weights, name: torch.full_like(weights[name], value)}

    broken = gpt2_directory(folder, change)
    assert re.search(rf"{broken}: .*{reason}", evaluate(broken, "--corpus", "text.txt", code=4))


def test_a_perplexity_beyond_any_float_is_infinite(folder, evaluate):
    def change(weights):
        return {name: 1e4 * tensor if "wte" in name else tensor for name, tensor in weights.items()}

    out = evaluate(gpt2_directory(folder, change), "--corpus", "text.txt")
    assert float(out.split()[1]) > 710
    assert "perplexity     inf\n" in out


def test_a_tokenizer_of_more_tokens_than_the_model_is_one_line(folder, evaluate, tmp_path):
    directory = gpt2_directory(folder, dict)
    for file, data in CharTokenizer("".join(sorted({*TEXT, *"xyz"}))).files().items():
        (directory / file).write_bytes(data)
    (tmp_path / "a.txt").write_text("xyz" * 9)
    message = evaluate(directory, "--corpus", tmp_path / "a.txt", code=2)
    assert f"{directory}: the tokenizer has 21 tokens, but the model's embedding only 18 rows" in message
