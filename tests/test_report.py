"""The report: its numbers are those of metrics.jsonl, as a browser draws them."""

import html
import json
import math
import re
import shutil
import subprocess
from contextlib import contextmanager
from functools import cache
from hashlib import sha256

import pytest
import vl_convert

from gptmini.checkpoint import manifest
from gptmini.cli.main import main
from gptmini.report.content import tell_texts_apart
from gptmini.training.log_files import SampleLine, format_line, read_log, read_metrics

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TEXT = "".join(f"Sentence {i} says that {i} times {i} is {i * i}; <b>née</b> & so on.\n" for i in range(120))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs on one text, and their report."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("report")
        patch.setenv("GPTMINI_CACHE_DIR", str(folder / "cache"))
        patch.setattr(vl_convert, "javascript_bundle", cache(vl_convert.javascript_bundle))  # takes seconds
        patch.chdir(folder)
        (folder / "text.txt").write_text(TEXT, encoding="utf-8")
        args = (
            "train --data.corpus text.txt --tokenizer.kind bytes --model.n-layer 1 --model.n-head 2 --quiet"
        )
        args += " --model.n-embd 16 --model.context-length 16 --train.max-steps 6 --train.batch-size 4"
        args += " --train.eval-interval 3 --train.sample-interval 3 --train.log-interval 1"
        args += " --runtime.device cpu --runtime.threads 1"
        for name, more in (
            ("first", " --optim.optimizer adamw --optim.lr 0.001"),
            ("second", " --optim.optimizer muon --optim.lr 0.01"),
        ):
            assert main([*(args + more).split(), "--train.out-dir", f"runs/{name}"]) == 0
        assert main(["report", "runs/first", "runs/second"]) == 0
        yield folder


def content_of(page):
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


def test_the_page_holds_every_metric_sample_and_difference(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    content = content_of(page)
    for run, name in zip(content["runs"], ("first", "second"), strict=True):
        assert run["metrics"] == list(read_metrics(folder / "runs" / name / "metrics.jsonl"))
        assert run["samples"] == list(read_log(folder / "runs" / name / "samples.jsonl", SampleLine))
        assert [sample["step"] for sample in run["samples"]] == [3, 6]
        assert run["baselines"].keys() == {"gzip", "xz", "5-gram"}
        assert run["worst"][0]["loss"] >= run["best"][0]["loss"]
        bits = f"{min(line['bits_per_byte'] for line in run['metrics'] if line['split'] == 'val'):.2f}"
        assert f"<p><b>{name}</b> {bits} bits per byte of validation text: " in page
    assert content["notes"] == []
    differing = re.search(r"<h3>Keys that differ</h3>(.*?)</table>", page, re.DOTALL)[1]
    assert re.findall(r"<tr><th>([\w.]+)</th>", differing) == [
        "optim.optimizer", "optim.lr", "train.out_dir",
    ]  # fmt: skip
    assert "gptmini train runs/second/config.yaml --train.out-dir runs/second-again" in page
    assert "<tr><th>threads</th><td>1</td><td>1</td></tr>" in page


def test_text_of_a_run_stays_text(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "runs" / "first", tmp_path / "<b>{{SCRIPT}}")
    text = "{{LIBRARY}}</script><script>alert(1)</script>"
    with open(tmp_path / "<b>{{SCRIPT}}" / "samples.jsonl", "a", encoding="utf-8") as file:
        file.write(format_line({"step": 7, "text": text}) + "\n")
    assert main(["report", "<b>{{SCRIPT}}"]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    (run,) = content_of(page)["runs"]
    assert run["samples"][-1]["text"] == text
    assert "<title>&lt;b&gt;{{SCRIPT}} · gptmini</title>" in page
    assert "<script>alert" not in page


def test_the_page_loads_nothing_from_elsewhere(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    own = page.replace(max(re.findall(r"<script>.*?</script>", page, re.DOTALL), key=len), "")
    assert not re.search(r"(src|href)=|@import|url\(|fetch\(|https?://", own)


def test_the_tokens_of_a_window_are_its_text_and_their_bits_its_loss(folder):
    content = content_of((folder / "report.html").read_text(encoding="utf-8"))
    for window in content["runs"][0]["worst"] + content["runs"][0]["best"]:
        text = "".join(piece[0] for piece in window["pieces"])
        assert text.strip("\ufffd") in TEXT
        bits = sum(piece[1] for piece in window["pieces"])
        assert bits == pytest.approx(window["loss"] * 16 / 0.6931471805599453, abs=0.02)
        for _, _, alternatives in window["pieces"]:
            chances = [chance for _, chance in alternatives]
            assert chances == sorted(chances, reverse=True)
            assert sum(chances) <= 1.0001


def browse(page, folder):
    """The page as a browser has drawn it."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=15000"]
    command += [f"--user-data-dir={folder / 'browser'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return html.unescape(done.stdout)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_draws_the_numbers_of_metrics_jsonl(folder):
    drawn = browse(folder / "report.html", folder)
    assert 'data-drawn="true"' in drawn
    for field in ("loss", "bits_per_byte", "lr", "grad_norm", "tokens_per_second"):
        part = drawn.partition(f'id="plot-{field}"')[2].partition('id="plot-')[0]
        found = {
            (m["run"], m["split"], int(m["step"])): float(m["value"])
            for m in re.finditer(
                r'aria-label="run: (?P<run>\w+)\n(?:split: (?P<split>\w+)\n)?step: (?P<step>\d+)\n'
                rf'{field}: (?P<value>[^";]+)"',
                part,
            )
        }
        expected = {
            (name, line["split"] if "loss" in field or "bits" in field else None, line["step"]): line[field]
            for name in ("first", "second")
            for line in read_metrics(folder / "runs" / name / "metrics.jsonl")
            if line[field] is not None
        }
        assert found.keys() == expected.keys()
        assert found == expected
    assert drawn.count('class="piece"') > 100
    assert drawn.count('class="sample"') == 4


@pytest.fixture(scope="module")
def browser():
    """A browser that can be asked for boxes and texts."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser, page, width=1200):
    with browser.new_page(viewport={"width": width, "height": 800}) as tab:
        tab.set_default_timeout(120_000)  # milliseconds, for a machine with much to do
        tab.goto(page.as_uri())
        tab.wait_for_selector("body[data-drawn]")
        yield tab


def test_in_a_narrow_window_the_summary_is_whole_and_samples_come_before_the_small_charts(browser, folder):
    with opened(browser, folder / "report.html", width=390) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
        assert tab.evaluate("(({scrollWidth, clientWidth}) => scrollWidth - clientWidth)"
                            "(document.querySelector('#summary .scroll'))") == 0  # fmt: skip
        for name in ("best validation loss", "bits per byte", "tokens/s", "time"):  # a cell's name is drawn
            names = "(cells) => cells.map((cell) => getComputedStyle(cell, '::before').content)"
            assert f'"{name}"' in tab.eval_on_selector_all("#summary td", names)
        order = ["#verdict", "#summary", "#plot-loss", "#samples", "#plot-lr", "#tokens"]
        tops = [tab.locator(selector).bounding_box()["y"] for selector in order]
        assert tops == sorted(tops)


def test_the_newest_sample_stands_beside_the_first(browser, folder):
    with opened(browser, folder / "report.html") as tab:
        first, newest = tab.locator("#samples .column").first.locator(".pair .sample").all()
        assert (first.locator("b").inner_text(), newest.locator("b").inner_text()) == ("step 3", "step 6")
        assert first.bounding_box()["y"] == newest.bounding_box()["y"]
        assert first.bounding_box()["x"] < newest.bounding_box()["x"]


@pytest.mark.parametrize("several", [False, True])
def test_baselines_of_several_texts_say_whose_they_are(browser, folder, several):
    page = (folder / "report.html").read_text(encoding="utf-8")
    if several:
        page = page.replace('"text.txt"', '"other.txt"', 1)
    (folder / "texts.html").write_text(page, encoding="utf-8")
    with opened(browser, folder / "texts.html") as tab:
        labels = tab.locator("#plot-bits_per_byte svg text").all_text_contents()
    found = {re.sub(r"\d\.\d\d", "N", label) for label in labels if label.startswith("xz")}
    assert found == ({"xz N text.txt", "xz N other.txt"} if several else {"xz N"})


def test_the_tip_at_a_point_names_it(browser, folder):
    with opened(browser, folder / "report.html") as tab:
        tab.locator("#plot-loss svg").hover(position={"x": 200, "y": 120})
        tab.wait_for_selector(".vg-tooltip.visible")
        tip = tab.locator(".vg-tooltip").inner_text()
    assert re.fullmatch(r"run: (first|second)\nsplit: (train|val)\nstep: \d\nloss: [\d.]+", tip)


def test_texts_that_are_called_the_same_get_names_that_differ():
    runs = [("a", "input.txt", "1"), ("b", "input.txt", "2"), ("c", "input.txt", "1"), ("d", "x.txt", "3")]
    shown = [{"name": name, "text": text, "text_digest": digest} for name, text, digest in runs]
    tell_texts_apart(shown)
    assert [run["text"] for run in shown] == ["input.txt", "input.txt of b", "input.txt", "x.txt"]


HOSTILE = "{{SCRIPT}}{{CONTENT}}</script><!--<script>\u2028\x1b[31m'\"&amp;$&\\1"


def forge(state, values):
    """Change a state.json as an attacker would, who changes the manifest too."""
    state.write_text(json.dumps(values))
    step, content = state.parents[1], state.read_bytes()
    summary = {"size": len(content), "sha256": sha256(content).hexdigest()}
    files = {**manifest.read_manifest(step), manifest.STATE: summary}
    (step / manifest.MANIFEST).write_bytes(manifest.manifest_bytes(files))


@pytest.fixture
def hostile(folder, monkeypatch, tmp_path):
    """A run whose name, samples, config and environment hold what HTML, scripts and templates react to."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "<!--{{SCRIPT}}'\x1b[31m\udcff"
    shutil.copytree(folder / "runs" / "first", run)
    with open(run / "samples.jsonl", "a", encoding="utf-8") as file:
        file.write(format_line({"step": 7, "text": HOSTILE}) + "\n")
    config = (run / "config.yaml").read_text(encoding="utf-8")
    config = config.replace("text_field: text", f"text_field: {json.dumps(HOSTILE)}")
    (run / "config.yaml").write_text(config, encoding="utf-8")
    (state,) = run.glob("checkpoints/step-00000006/training/state.json")
    values = json.loads(state.read_text())
    values["environment"]["torch"] = HOSTILE
    forge(state, values)
    (run / "metrics.jsonl").write_text("")
    return run


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_text_made_to_break_the_page_as_text(hostile, tmp_path):
    assert main(["report", hostile.name]) == 0
    drawn = browse(tmp_path / "report.html", tmp_path)
    assert 'data-drawn="true"' in drawn
    assert drawn.count(HOSTILE) >= 3  # the sample, the config and the environment
    assert "<h2>Samples</h2>" in drawn


@pytest.mark.parametrize("environment", [[1], "torch", 3, {"torch": [1], "threads": None}])
def test_an_environment_that_no_run_wrote_is_shown_or_left_out(hostile, environment):
    state = hostile / "checkpoints" / "step-00000006" / "training" / "state.json"
    forge(state, {**json.loads(state.read_text()), "environment": environment})
    assert main(["report", hostile.name]) == 0


@pytest.mark.parametrize(
    "line",
    [
        {"step": 1, "text": 5},
        {"step": 1, "text": None},
        {"step": "1", "text": "x"},
        {"step": 1, "text": "\ud800"},
        {"text": "x"},
        [1],
    ],
)
def test_a_sample_that_no_run_wrote_is_one_line(hostile, capsys, line):
    (hostile / "samples.jsonl").write_text(json.dumps(line) + "\n")
    assert main(["report", hostile.name]) in (0, 4)
    assert capsys.readouterr().err.count("\n") <= 1


@pytest.mark.parametrize("values", [{"loss": True}, {"loss": "1"}, {"loss": 1.0, "step": -1}, {"epoch": 1}])
def test_a_metric_that_no_run_wrote_is_one_line(folder, hostile, capsys, values):
    line = next(read_metrics(folder / "runs" / "first" / "metrics.jsonl"))
    (hostile / "metrics.jsonl").write_text(json.dumps({**line, **values}) + "\n")
    assert main(["report", hostile.name]) == 4
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("values", [{"bits_per_byte": None}, {"loss": None}, {"loss": math.nan}])
def test_a_loss_without_its_bits_is_no_best(folder, hostile, values):
    *_, line = read_metrics(folder / "runs" / "first" / "metrics.jsonl")
    assert line["split"] == "val"
    (hostile / "metrics.jsonl").write_text(json.dumps({**line, **values}) + "\n")
    assert main(["report", hostile.name]) == 0
    assert ">none yet</td>" in (hostile.parent / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "takes RUN [RUN ...]; given: nothing"),
        (["nowhere"], "nowhere: not a run folder"),
        (["runs/first", "runs/first"], "the same run is given twice"),
    ],
)
def test_what_is_no_run_is_one_line(folder, monkeypatch, capsys, args, message):
    monkeypatch.chdir(folder)
    assert main(["report", *args, "--output", "other.html"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "other.html").exists()


def test_a_damaged_line_is_named_and_a_text_that_is_gone_is_noted(folder, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "runs" / "first", tmp_path / "first")
    assert main(["report", "first"]) == 0
    assert "first: no token view and no comparison with compressors: " in capsys.readouterr().out
    with open(tmp_path / "first" / "metrics.jsonl", "a") as file:
        file.write("{}\n")
    assert main(["report", "first"]) == 4
    assert "first/metrics.jsonl: line 9 is not what a run writes" in capsys.readouterr().err


def test_the_nan_of_a_diverged_run_leaves_a_gap_in_its_curve(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "runs" / "first", tmp_path / "first")
    metrics = tmp_path / "first" / "metrics.jsonl"
    *_, last = read_metrics(metrics)
    with open(metrics, "a") as file:
        diverged = {"step": last["step"] + 1, "loss": math.nan, "bits_per_byte": math.inf}
        file.write(format_line({**last, **diverged}) + "\n")
    assert main(["report", "first"]) == 0
    (run,) = content_of((tmp_path / "report.html").read_text(encoding="utf-8"))["runs"]
    assert (run["metrics"][-1]["loss"], run["metrics"][-1]["bits_per_byte"]) == (None, None)
