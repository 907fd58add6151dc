"""`gptmini export --format html`: one file that opens offline, and says so where it is damaged."""

import re
import shutil
from importlib.resources import files
from pathlib import Path

import pytest

import gptmini
from gptmini import model as model_module
from gptmini.cli.main import main
from gptmini.config import GPTConfig
from gptmini.data.tokenizers import Tokenizer
from gptmini.model import GPT
from gptmini.web import export
from gptmini.web.describe import describe, find_lines

SCRIPT = "Now <script>hacked=1</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of some seconds, whose model knows by heart a text that is a script."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "page <b>.txt").write_text(f"{SCRIPT}\n" * 200)
    gptmini.train(
        {
            "model": {"n_layer": 1, "n_head": 2, "n_embd": 32, "context_length": 64},
            "data": {"corpus": str(folder / "page <b>.txt")},
            "tokenizer": {"kind": "bytes"},
            "optim": {"lr": 0.01},
            "train": {"out_dir": str(folder / "a <i>run"), "max_steps": 150, "batch_size": 8},
            "runtime": {"device": "cpu", "threads": 1},
        },
        quiet=True,
    )
    return folder / "a <i>run"


@pytest.fixture
def exported(run, tmp_path):
    assert main(["export", str(run), "--format", "html", "--output", str(tmp_path / "page.html")]) == 0
    return tmp_path / "page.html"


@pytest.fixture
def show(chromium):
    """Opens a file without a network; returns the page, and what it asked for besides itself."""
    contexts = []

    def show(path):
        contexts.append(chromium.new_context(offline=True))
        contexts[-1].set_default_timeout(0)  # a busy machine takes its time
        page = contexts[-1].new_page()
        asked = []
        page.on("request", lambda request: asked.append(request.url[:60]))
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready], #page-error:not([hidden])")
        return page, [url for url in asked if not url.startswith(("data:", path.as_uri()[:60]))]

    yield show
    for context in contexts:
        context.close()


def test_the_file_opens_offline_and_nothing_in_it_becomes_html(exported, run, show):
    page, asked = show(exported)
    assert asked == []
    assert page.locator("#page-error").is_hidden()
    assert page.locator("#name").text_content() == "a <i>run"
    assert "it was trained on page <b>.txt for" in page.locator("#sentence").text_content()
    assert page.locator("#prompt").input_value() == SCRIPT
    page.fill("#length", "60")
    page.click("#generate")
    page.wait_for_function(
        "document.getElementById('text').textContent.includes('</script>')", timeout=120_000
    )
    assert page.evaluate(
        "window.hacked === undefined && !document.querySelector('h1 *, #sentence *, main script')"
    )


def test_a_file_that_was_cut_off_or_changed_says_so_in_a_sentence(exported, show):
    whole = exported.read_bytes()
    start = whole.index(b'id="weights"')
    other = b"a" if whole[-5000] != ord("a") else b"b"
    for damaged in (whole[: start + 5000], whole[:-3000], whole[:-5000] + other + whole[-4999:]):
        exported.write_bytes(damaged)
        page, _ = show(exported)
        assert "the model in this page is damaged" in page.locator("#page-error").text_content().lower()
        page.context.close()


@pytest.mark.parametrize(("dtype", "bytes_each"), [("float16", 2), ("int8", 1)])
def test_the_file_is_the_weights_and_at_most_300_kb(tmp_path, dtype, bytes_each):
    text = "".join(f"Sentence {i} says that {i} times {i} is {i * i}.\n" for i in range(3000))
    tokenizer = Tokenizer.train(text, vocab_size=2048)
    shape = {"n_layer": 6, "n_head": 6, "n_embd": 192, "context_length": 256}
    model = GPT(GPTConfig(vocab_size=len(tokenizer), **shape))
    gptmini.save(tmp_path / "model", model, tokenizer)
    export.export_html(tmp_path / "page.html", tmp_path / "model", dtype)
    weights = bytes_each * sum(parameter.numel() for parameter in model.parameters())
    assert weights < (tmp_path / "page.html").stat().st_size <= weights + 300_000


def error_of(capsys, *args):
    assert main(["export", *map(str, args)]) == 2
    *others, line = capsys.readouterr().err.splitlines()
    assert others == []
    return line


def test_what_cannot_be_a_page_is_one_line_and_writes_nothing(run, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out" / "page.html"
    output.parent.mkdir()
    html = ["--format", "html", "--output", output]
    assert "--format html takes --dtype float16 or int8, not q8_0" in error_of(
        capsys, run, *html, "--dtype", "q8_0"
    )
    assert "--format gguf takes --dtype float32, float16 or q8_0, not int8" in error_of(
        capsys, run, "--dtype", "int8", "--output", output
    )
    monkeypatch.setattr(export, "MAX_PARAMETERS", 20_000)
    line = error_of(capsys, run, *html)
    assert re.search(r"2\d,\d{3} parameters would make a file of \d+ MB.*gptmini serve .*a <i>run", line)
    monkeypatch.undo()
    tiny = GPT(GPTConfig(vocab_size=9, n_layer=1, n_head=1, n_embd=8, context_length=8))
    gptmini.save(tmp_path / "bare", tiny)
    assert "bare: holds no tokenizer, and the page needs one" in error_of(capsys, tmp_path / "bare", *html)
    tiny = GPT(GPTConfig(vocab_size=257, n_layer=1, n_head=1, n_embd=8, context_length=8))
    tiny.blocks[0].ln_1.weight.data[3] = 1e5
    gptmini.save(tmp_path / "large", tiny, Tokenizer.train("", "bytes"))
    assert "blocks.0.ln_1.weight holds a weight of 1e+05" in error_of(capsys, tmp_path / "large", *html)
    assert list(output.parent.iterdir()) == []


def test_a_page_says_what_its_model_is(run, tmp_path):
    info = describe(run, "name")
    trained = r"continues text; it was trained on page <b>\.txt for \d+ seconds? \(150 steps\)"
    assert re.fullmatch(rf"{trained} and does not answer questions", info["sentence"])
    assert (info["name"], info["tokenizer"], info["vocab_size"]) == ("name", "bytes", 257)
    assert info["parameters"] == sum(p.numel() for p in gptmini.load(run)[0].parameters())
    # one step's folder, away from its run and its text
    shutil.copytree(run / "checkpoints" / "step-00000150", tmp_path / "moved")
    (run.parent / "page <b>.txt").rename(tmp_path / "elsewhere")
    moved = describe(tmp_path / "moved", "name")
    (tmp_path / "elsewhere").rename(run.parent / "page <b>.txt")
    assert "it was trained on page <b>.txt for 150 steps and" in moved["sentence"]
    assert (info["first_line"], moved["first_line"]) == (SCRIPT, "")
    # somebody's GPT-2
    gptmini.save(tmp_path / "plain", *gptmini.load(run))
    assert describe(tmp_path / "plain", "name")["sentence"] == "continues text and does not answer questions"


def test_each_view_names_a_line_of_model_py():
    source = Path(model_module.__file__).read_text().splitlines()
    named = {view: source[line - 1].strip() for view, line in find_lines().items()}
    assert named["attention"].startswith("weights = F.dropout(scores.softmax(dim=-1)")
    assert named.keys() == {"embedding", "attention", "residual", "lens", "loss", "neighbors"}


def test_the_sources_of_the_page_are_ascii_as_its_file_is_windows_1252():
    for path in (files("gptmini") / "web").iterdir():
        if path.name.endswith((".js", ".css", ".html")):
            assert path.read_text(encoding="utf-8").isascii(), path.name
