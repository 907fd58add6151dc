"""The page in Chromium, over both engines: it draws what PyTorch computes, and does what a person asks."""

import math
import re
import string

import pytest
import torch
from web_page import opened_pages, percent, random_model

from gptmini.data.tokenizers import Tokenizer
from gptmini.generation.attention import record_attention

LETTERS = string.ascii_letters + " .\n"


@pytest.fixture(scope="module")
def open_page(chromium, tmp_path_factory):
    with opened_pages(chromium, tmp_path_factory.mktemp("pages")) as open_page:
        yield open_page


@pytest.fixture(scope="module", params=["local", "server"])
def shared(open_page, request):
    tokenizer = Tokenizer.train(LETTERS, "chars")
    return open_page(random_model(tokenizer.vocab_size), tokenizer, request.param)


@pytest.fixture
def page(shared):
    """The page with either engine, as it opens; nothing may go wrong in its scripts meanwhile."""
    shared.tab.evaluate("location.hash = ''")
    shared.tab.reload()
    shared.tab.wait_for_selector("body[data-ready]")
    yield shared
    assert not shared.errors


# ------------------------------------------------------------------------------------------ Play


def test_the_continuation_is_pytorchs_shaded_by_its_probability(page):
    """At temperature 0 the same tokens, each shaded by its surprise, and the prompt not at all."""
    page.generate("The cat", temperature=0, length=12)
    ids = page.greedy("The cat", 12)
    assert page.text() == page.tokenizer.decode(ids)
    expected = page.log_probabilities(ids)[6:].exp()
    shades = [shade for _, _, shade in page.tokens()]
    assert shades[:7] == [None] * 7
    assert shades[7:] == pytest.approx((-expected.log2() / 10).clamp(max=1).tolist(), abs=2e-3)
    assert [percent(words) for _, words, _ in page.tokens()[7:]] == pytest.approx(expected.tolist(), rel=0.06)


def test_another_token_is_taken_and_the_first_text_stays_reachable(page):
    page.generate("The cat", temperature=0, length=8)
    first, tab = page.text(), page.tab
    tab.click("#text .token:nth-child(4)")  # the space of "The cat"
    options = tab.locator("[role=option]")
    options.nth(19).wait_for()
    expected = page.logits(page.tokenizer.encode("The"))[-1].softmax(dim=-1).topk(20)
    shown = [percent(words) for words in tab.locator("[role=option] .value").all_inner_texts()]
    assert shown == pytest.approx(expected.values.tolist(), rel=0.06)
    taken = page.tokenizer.decode([int(expected.indices[1])])
    options.nth(1).click()
    page.wait()
    assert page.text() != first
    assert page.text().startswith("The" + taken)
    branches = tab.locator("#branches button")
    assert branches.count() == 2
    branches.nth(0).click()
    assert page.text() == first
    branches.nth(1).click()
    assert page.text() != first
    tab.click("#again")  # the same seed and the same text: no branch of its own
    page.wait()
    assert branches.count() == 2


def test_a_seed_is_shown_and_gives_the_same_text_again(page):
    page.generate("The cat", length=20)
    seed, first = page.tab.input_value("#seed"), page.text()
    assert seed.isdigit()
    page.tab.uncheck("#random")
    page.tab.click("#edit")
    page.generate("The cat", length=20)
    assert page.tab.input_value("#seed") == seed
    assert page.text() == first
    page.set(seed=int(seed) + 1)
    page.tab.click("#again")
    page.wait()
    assert page.text() != first


def test_bytes_are_joined_to_characters(open_page):
    """An emoji is four tokens of bytes: it stands as one character, and each of them can be looked at."""
    page = open_page(random_model())
    page.generate("\U0001f600 سلام", length=1)
    texts = [text for text, _, _ in page.tokens()]
    assert texts[:6] == ["\U0001f600", " ", *"سلام"]
    page.tab.click("#text .token")
    page.tab.wait_for_selector("[role=option]")
    members = page.tab.locator(".members button")
    assert members.all_inner_texts() == ["F0", "9F", "98", "80"]
    members.nth(2).click()
    page.tab.wait_for_selector("[role=option]")
    best = page.logits([0xF0, 0x9F])[-1].softmax(dim=-1).max().item()
    assert percent(page.tab.locator("[role=option] .value").first.inner_text()) == pytest.approx(
        best, rel=0.06
    )


def test_what_comes_next_is_shown_as_a_person_types(page):
    page.write("")
    page.tab.focus("#prompt")
    page.tab.keyboard.type("The cat")
    page.tab.wait_for_selector("#status:text-is('7 tokens')")
    page.tab.wait_for_selector("#hint[aria-busy=false] .chip")
    best = page.logits(page.tokenizer.encode("The cat"))[-1].softmax(dim=-1)
    best = best[: len(LETTERS)].topk(8).values  # without the end of text
    chips = page.tab.locator("#hint .chip")
    assert [percent(words) for words in chips.all_inner_texts()] == pytest.approx(best.tolist(), rel=0.06)
    chips.nth(1).click()
    assert len(page.tab.input_value("#prompt")) == len("The cat") + 1


# ------------------------------------------------------------------------------------------ Look inside


def test_attention_is_drawn_as_pytorch_computes_it(page):
    """The large map's pixels, and what is said of each token, in a head that a person opens."""
    text = "The cat sat on the mat"
    page.look_inside(text)
    ids = page.tokenizer.encode(text)
    with record_attention(page.model) as weights, torch.inference_mode():
        page.model(torch.tensor([ids]))
    page.tab.select_option("[aria-label=Layer]", index=1)
    page.tab.select_option("[aria-label=Head]", index=2)
    expected, T = weights[1][0, 2], len(ids)
    page.tab.wait_for_selector(".one .large[aria-label^='Attention of layer 2, head 3']")
    page.tab.click("#surprise .token:last-child")
    page.tab.wait_for_timeout(50)
    said = [percent(words) for _, words, _ in page.tokens(".attention")]
    assert said == pytest.approx(expected[-1].tolist(), rel=0.06, abs=1e-4)
    pixels = page.tab.evaluate(
        """(T) => {
          const canvas = document.querySelector('.one .large'), context = canvas.getContext('2d'), found = [];
          const side = canvas.width / T;
          for (let t = 0; t < T - 1; t++) for (let s = 0; s <= t; s++)
            found.push([...context.getImageData((s + 0.5) * side, (t + 0.5) * side, 1, 1).data].slice(0, 3));
          const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
          return [found, color('--panel'), color('--accent')];
        }""",
        T,
    )
    low, high = (torch.tensor(list(bytes.fromhex(color[1:])), dtype=torch.float) for color in pixels[1:])
    rows, columns = torch.tril_indices(T - 1, T - 1)
    drawn = torch.tensor(pixels[0], dtype=torch.float)
    shade = expected[rows, columns].sqrt()[:, None]
    assert (drawn - (low + shade * (high - low))).abs().max() <= 2  # of 255


def test_what_the_engine_gives_for_attention_sums_to_one(page):
    """Within 1e-5 of what `record_attention` records of the same weights."""
    ids = page.tokenizer.encode("The cat sat")
    with record_attention(page.model) as weights, torch.inference_mode():
        page.model(torch.tensor([ids]))
    found = page.tab.evaluate(
        """async (ids) => {
          const { attention } = await gptmini.engine.inspect(gptmini.play.model.id, ids);
          return [...await attention(2, 1)];
        }""",
        ids,
    )
    found = torch.tensor(found).view(len(ids), len(ids))
    assert (found - weights[2][0, 1]).abs().max() < 1e-5
    assert (found.sum(dim=-1) - 1).abs().max() < 1e-5


def test_the_lens_and_surprise_are_pytorchs(page):
    """The last layer of the lens is the model's output; the first says what the embedding alone would."""
    text = "The cat sat"
    page.look_inside(text)
    ids = page.tokenizer.encode(text)
    with torch.inference_mode():
        model = page.model
        embedded = model.token_embedding(torch.tensor(ids)) + model.position_embedding(torch.arange(len(ids)))
        layers = {1: model.lm_head(model.ln_f(embedded)), 4: page.logits(ids)}
    for column, logits in layers.items():
        probabilities = logits.softmax(dim=-1)
        cells = page.tab.evaluate(
            "(column) => [...document.querySelectorAll('.lens tbody tr')].map((row) => "
            "[Number(row.cells[column].style.getPropertyValue('--s')), row.cells[column].ariaLabel])",
            column,
        )
        assert [shade for shade, _ in cells] == pytest.approx(probabilities.amax(dim=-1).tolist(), abs=6e-4)
        said = [re.search(r": (.*), ", words)[1].replace("·", " ").replace("↵", "\n") for _, words in cells]
        likeliest = [
            page.tokenizer.decode([i]) or "end of text" for i in probabilities.argmax(dim=-1).tolist()
        ]
        assert said == likeliest
    bits = -page.logits(ids).log_softmax(dim=-1)[:-1].gather(
        1, torch.tensor(ids[1:])[:, None]
    ).flatten() / math.log(2)
    said = [float(re.search(r"([\d.]+) bits", words)[1]) for _, words, _ in page.tokens("#surprise")[1:]]
    assert said == pytest.approx(bits.tolist(), abs=6e-3)


def test_nearest_tokens_are_those_of_the_chosen_token(page):
    page.look_inside("The cat")
    page.tab.click("#surprise .token:nth-child(2)")  # h
    page.tab.wait_for_selector("#neighbors h3:has-text('Nearest to h')")
    table = page.model.token_embedding.weight
    cosines = torch.nn.functional.cosine_similarity(table, table[page.tokenizer.encode("h")], dim=-1)
    expected = cosines.topk(21).values[1:].tolist()
    shown = [float(words) for words in page.tab.locator(".ranking .value").all_inner_texts()]
    assert shown == pytest.approx(expected, abs=6e-3)


def test_a_long_text_is_cut_to_the_tokens_that_fit_and_says_so(page):
    page.look_inside("The cat sat." * 20)
    assert "The last 64 of 240 tokens" in page.tab.inner_text("#look .note")
    assert page.tab.locator(".lens tbody tr").count() == 64
