"""The page in a tab of Chromium and the model that it shows, for the tests of gptmini/web."""

import re
from contextlib import ExitStack, contextmanager
from itertools import count

import torch
from web_server import running

from gptmini.checkpoint.gpt2_directory import save
from gptmini.checkpoint.store import load_model
from gptmini.config import GPTConfig
from gptmini.data.tokenizers import Tokenizer
from gptmini.generation.generate import generate
from gptmini.model import GPT
from gptmini.web.export import export_html


def random_model(vocab_size=257, **sizes):
    """Weights as far from each other as in a trained model, so that heads and tokens differ."""
    torch.manual_seed(0)
    shape = {"n_layer": 3, "n_head": 4, "n_embd": 32, "context_length": 64, **sizes}
    model = GPT(GPTConfig(vocab_size=vocab_size, **shape))
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
        parameter.data = parameter.data.half().float()  # the exported file rounds to float16
    return model.eval()


def parrot(text):
    """A model of bytes that says `text`, whatever it reads: each position's vector is the next token's."""
    ids = list(text.encode())
    model = random_model(n_layer=1, n_embd=128, context_length=len(ids) + 1)
    for block in model.blocks:
        for part in (block.attn.c_proj, block.mlp.c_proj):
            torch.nn.init.zeros_(part.weight)
            torch.nn.init.zeros_(part.bias)
    torch.nn.init.ones_(model.ln_f.weight)
    torch.nn.init.zeros_(model.ln_f.bias)
    torch.nn.init.normal_(model.token_embedding.weight, std=0.5)
    model.position_embedding.weight.data[: len(ids) - 1] = 20 * model.token_embedding.weight[ids[1:]].detach()
    return model


class Page:
    """The page in a tab, and the model that it shows."""

    def __init__(self, tab, folder):
        self.tab, self.errors = tab, []
        tab.on("pageerror", lambda error: self.errors.append(error))
        self.model, self.tokenizer = load_model(folder, "cpu")
        tab.wait_for_selector("body[data-ready]")

    def write(self, text):
        self.tab.fill("#prompt", text)

    def set(self, **settings):
        """Settings of Play, by their ids."""
        for name, value in settings.items():
            self.tab.evaluate(
                "([id, value]) => { document.getElementById(id).value = value }", [name, str(value)]
            )

    def generate(self, text, **settings):
        """Write a text, press Generate, wait for the end."""
        self.write(text)
        self.set(**settings)
        self.tab.click("#generate")
        self.wait()

    def wait(self):
        self.tab.wait_for_selector("#generate:has-text('Continue')")

    def text(self):
        return self.tab.evaluate("document.getElementById('text').textContent")

    def tokens(self, view="#text"):
        """Of each token in a view: its text, what is said of it, and its shade or None."""
        return self.tab.locator(f"{view} .token").evaluate_all(
            """(spans) => spans.map((span) => [span.textContent, span.ariaLabel,
                 span.classList.contains("shaded") ? Number(span.style.getPropertyValue("--s")) : null])"""
        )

    def look_inside(self, text):
        self.write(text)
        self.tab.click("#tab-look")
        self.tab.wait_for_selector("#look .views:visible .ranking li")
        self.tab.wait_for_selector(".one .large[aria-label]")

    def logits(self, ids):
        """What PyTorch computes after each of these ids, (T, V)."""
        with torch.inference_mode():
            return self.model(torch.tensor([ids]))[0]

    def log_probabilities(self, ids):
        """Of each of these ids but the first, in nats, (T - 1,)."""
        return self.logits(ids)[:-1].log_softmax(dim=-1).gather(1, torch.tensor(ids[1:])[:, None]).flatten()

    def greedy(self, text, count):
        ids = torch.tensor([self.tokenizer.encode(text)])
        return generate(self.model, ids, max_new_tokens=count, temperature=0.0)[0].tolist()


@contextmanager
def opened_pages(chromium, folder):
    """Yields a function that opens the page for a model: an exported file without a network, or served."""
    numbers = count()
    with ExitStack() as opened:

        def open_page(model, tokenizer=None, kind="local", **context):
            path = folder / str(next(numbers))
            path.mkdir()
            save(path / "model", model, tokenizer or Tokenizer.train("", "bytes"))
            browsing = chromium.new_context(offline=kind == "local", **context)
            opened.callback(browsing.close)
            tab = browsing.new_page()
            if kind == "local":
                export_html(path / "page.html", path / "model", "float16")
                tab.goto((path / "page.html").as_uri())
            else:
                tab.goto(opened.enter_context(running(path / "model")))
            return Page(tab, path / "model")

        yield open_page


def percent(words):
    """The probability in words such as "a, 3.2 bits, 12 %"."""
    return float(re.search(r"([\d.]+) %$", words)[1]) / 100
