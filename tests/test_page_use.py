"""The page in use: by keys alone, in narrow windows, light and dark, with any text, on a run that trains."""

import re
from importlib.resources import files

import pytest
from web_page import opened_pages, parrot, random_model
from web_server import running, train_run

from gptmini.checkpoint.gpt2_directory import save
from gptmini.data.tokenizers import Tokenizer
from gptmini.training.log_files import format_line, read_metrics

EVIL = '<script>window.harmed = 1</script><img src=x onerror="window.harmed = 2"></textarea>&amp;'
UNBROKEN = "x" * 10_000


@pytest.fixture(scope="module")
def open_page(chromium, tmp_path_factory):
    with opened_pages(chromium, tmp_path_factory.mktemp("pages")) as open_page:
        yield open_page


def test_keys_alone_are_enough(open_page):
    """Ctrl+Enter generates, Escape stops, arrows walk the tokens and the alternatives, Enter takes one."""
    page = open_page(parrot("The cat sat and sang. " * 100))
    tab = page.tab
    tab.focus("#prompt")
    tab.keyboard.type("The")
    page.set(length=2000)
    tab.keyboard.press("Control+Enter")
    tab.locator("#text .token").nth(12).wait_for()
    tab.keyboard.press("Escape")
    page.wait()
    stopped = page.text()
    assert len(stopped) < 2000
    tab.focus("#text .token[tabindex='0']")
    tab.keyboard.press("End")
    tab.keyboard.press("ArrowLeft")
    count = tab.locator("#text .token").count()
    assert tab.evaluate("gptmini.play.view.spans.indexOf(document.activeElement)") == count - 2
    tab.keyboard.press("Enter")
    tab.wait_for_selector("[role=option]:focus")
    tab.keyboard.press("Escape")
    assert tab.evaluate("document.activeElement.className").startswith("token")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("[role=option]:focus")
    tab.keyboard.press("Home")
    tab.keyboard.press("ArrowDown")
    page.set(length=3)
    tab.keyboard.press("Enter")
    page.wait()
    assert page.text() != stopped
    assert tab.locator("#branches button").count() == 2
    tab.keyboard.press("Escape")
    tab.focus("#text .token[tabindex='0']")
    tab.keyboard.type("Z")  # typing goes on at the end of the text
    assert tab.input_value("#prompt").endswith("Z")
    tab.focus("[role=tab][aria-selected=true]")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#look .views:visible")


@pytest.mark.parametrize("text", [EVIL, UNBROKEN], ids=["markup", "unbroken"])
def test_no_text_harms_the_page(open_page, text):
    """A model that writes markup, or 10,000 characters without a space, writes text and nothing else."""
    page = open_page(parrot(text[:400]), viewport={"width": 390, "height": 844})
    page.generate(text[:1], temperature=0, length=min(90, len(text) - 1))
    assert page.text() == text[: len(page.text())]
    assert len(page.text()) > 80
    page.tab.click("#edit")
    page.write(text)
    page.look_inside(text)
    assert page.tab.evaluate("window.harmed") is None
    assert page.tab.evaluate("document.documentElement.scrollWidth") == 390


# The texts on the page whose contrast with what is behind them is below 4.5 to 1 (WCAG 2, 1.4.3).
UNREADABLE = """() => {
  const parse = (color) => {  // red, green, blue of 255, and how opaque
    const numbers = (color.match(/[\\d.]+/g) ?? []).map(Number);
    return numbers.map((value, i) => (color.startsWith("color(srgb") && i < 3 ? 255 * value : value));
  };
  const over = ([r, g, b, a = 1], under) => [r, g, b].map((value, i) => value * a + under[i] * (1 - a));
  const behind = (node) => node
    ? over(parse(getComputedStyle(node).backgroundColor), behind(node.parentElement)) : [255, 255, 255];
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const weights = [0.2126, 0.7152, 0.0722];
  const luminance = (color) => weights.reduce((sum, weight, i) => sum + weight * linear(color[i] / 255), 0);
  const contrast = (node) => {
    const ground = behind(node), ink = over(parse(getComputedStyle(node).color), ground);
    const [dark, light] = [luminance(ground), luminance(ink)].sort((x, y) => x - y);
    return (light + 0.05) / (dark + 0.05);
  };
  const hasText = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  return [...document.querySelectorAll("body *:not(script, style, option, :disabled)")]
    .filter((node) => node.checkVisibility() && hasText(node) && contrast(node) < 4.5)
    .map((node) => `${node.outerHTML} ${contrast(node)}`);
}"""

NAMELESS = """() => {
  const controls = "button, input, select, textarea, [role=button], [role=option], [role=grid]";
  const hasName = (node) => node.ariaLabel || node.labels?.length || node.innerText.trim();
  return [...document.querySelectorAll(controls)].filter((node) => node.checkVisibility() && !hasName(node))
    .map((node) => node.outerHTML);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_and_every_control_has_a_name(open_page, scheme):
    """Contrast of 4.5 to 1, as WCAG's AA asks, on every shade; in a narrow window nothing is cut off."""
    page = open_page(random_model(), viewport={"width": 390, "height": 844}, color_scheme=scheme)
    tab = page.tab

    def check():
        assert tab.evaluate(UNREADABLE) == []
        assert tab.evaluate(NAMELESS) == []
        assert tab.evaluate("document.documentElement.scrollWidth") == 390

    check()
    page.generate("The cat", temperature=2, length=20)
    tab.click("#again")
    page.wait()
    check()
    tab.click("#text .token:nth-child(3)")
    tab.wait_for_selector("[role=option]")
    check()
    tab.keyboard.press("Escape")
    tab.click("#tab-look")
    tab.wait_for_selector(".ranking li")
    check()


def test_no_source_makes_html_of_a_text():
    """A token may be a whole tag, which no small model writes: so nothing in the page parses HTML."""
    parses = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|setHTML|parseFromString|eval\("
    )
    for package in ("gptmini.web", "gptmini.report"):
        for path in files(package).iterdir():
            if path.name.endswith(".js"):
                assert not parses.search(path.read_text(encoding="utf-8")), path.name


def test_a_deep_model_stays_usable(open_page):
    """384 heads, each of which can be opened, by the pointer in the grid and by arrow keys."""
    page = open_page(random_model(n_layer=24, n_head=16))
    page.look_inside("The cat sat")
    tab, layer, head = page.tab, "[aria-label=Layer]", "[aria-label=Head]"
    grid = tab.locator(".maps canvas").bounding_box()
    assert grid["width"] <= 520
    tab.mouse.move(grid["x"] + 100, grid["y"] + 100)
    tab.focus(".maps")
    for _ in range(30):
        tab.keyboard.press("ArrowDown")
        tab.keyboard.press("ArrowRight")
    assert (tab.input_value(layer), tab.input_value(head)) == ("23", "15")
    assert tab.locator(".lens thead th").count() == 27
    tab.locator(".maps canvas").click(position={"x": 30, "y": 30})
    assert (tab.input_value(layer), tab.input_value(head)) == ("0", "0")


def test_a_server_that_went_away_is_one_sentence(chromium, tmp_path):
    save(tmp_path / "model", random_model(), Tokenizer.train("", "bytes"))
    with running(tmp_path / "model") as url:
        tab = chromium.new_context().new_page()
        tab.goto(url)
        tab.wait_for_selector("body[data-ready]")
    tab.click("#generate")
    tab.wait_for_selector("#play-error:has-text('gptmini serve')")
    tab.context.close()


# ------------------------------------------------------------------------------------------ Watch


def test_watch_shows_what_a_run_writes_and_its_checkpoints(chromium, tmp_path):
    """Figures, curves, samples with the newest first, and one prompt through each kept checkpoint."""
    run = train_run(tmp_path, checkpoint_interval=2, keep_checkpoints=2)
    with running(run) as url:
        tab = chromium.new_context().new_page()
        tab.goto(f"{url}/#/watch")
        tab.wait_for_selector("#watch .sample")
        assert "Trained to the end" in tab.inner_text(".state")
        assert "4 of 4" in tab.inner_text(".figures")
        samples = tab.locator(".sample b")
        assert samples.all_inner_texts() == ["step 4", "step 2"]
        points = "#plot-loss svg .role-mark path[aria-roledescription='point']"
        tab.wait_for_selector(points, state="attached")
        before = tab.locator(points).count()
        tab.wait_for_selector(".checkpoints output:has-text('Step 4')")
        tab.locator(".checkpoints .token.shaded").nth(20).wait_for()
        tab.focus(".checkpoints input[type=range]")
        tab.keyboard.press("ArrowLeft")
        tab.wait_for_selector(".checkpoints output:has-text('Step 2')")
        tab.locator(".checkpoints .token.shaded").nth(20).wait_for()
        # what the run writes from now on follows
        lines = read_metrics(run / "metrics.jsonl")
        last = [line for line in lines if line["split"] == "train"][-1]
        for name, line in (
            ("metrics.jsonl", {**last, "step": 6}),
            ("samples.jsonl", {"step": 6, "text": "Six"}),
        ):
            with open(run / name, "a", encoding="utf-8") as file:
                file.write(format_line(line) + "\n")
        tab.wait_for_selector("#watch .sample:first-child:has-text('step 6')")
        tab.wait_for_selector(".figures:has-text('6 of 4')")
        tab.locator(points).nth(before).wait_for(state="attached")
        tab.context.close()
