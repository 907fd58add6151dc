"""The page: how fast it computes in Chromium on one core, and how large its file is."""

import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

from gptmini.checkpoint.gpt2_directory import save
from gptmini.config import GPTConfig
from gptmini.data.python_docs import python_docs
from gptmini.data.tokenizers import Tokenizer
from gptmini.model import GPT
from gptmini.report.one_file import import_map, read_source
from gptmini.web.export import embed, export_html, read_model

SHAPES = {  # about 3 and 40 million parameters
    "3 M": {"n_layer": 6, "n_head": 6, "n_embd": 192, "context_length": 256},
    "39 M": {"n_layer": 12, "n_head": 8, "n_embd": 512, "context_length": 512},
}
MODULES = ("model.js", "sampling.js", "tokenizers.js", "weights.js", "local_engine.js")
ROUNDS, NEW, PROMPT = 5, 100, 128
MEASURE = """async ([prompt, tokens]) => {
  const { openEngine } = await import("gptmini/local_engine.js");
  const opening = performance.now(), engine = await openEngine(), opened = performance.now();
  const ids = Array.from({ length: prompt }, (_, i) => i);
  await engine.next(null, ids.map((id) => id + 1)); // compiled by now
  const asked = performance.now();
  await engine.next(null, ids);
  const answered = performance.now();
  for await (const step of engine.generate(null, ids, { max_new_tokens: tokens, temperature: 0.8, seed: 0 }));
  const done = performance.now();
  await engine.inspect(null, ids);
  return [opened - opening, answered - asked, (done - answered) / tokens, performance.now() - done];
}"""


def bench_page() -> None:
    """Milliseconds to open, for a prompt, a token and the views, of models with random weights."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # Chromium inherits it
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("bench.py page needs Chromium")
    text = [b"".join(document.blocks).decode() for document in python_docs()]
    tokenizer = Tokenizer.train(text, vocab_size=2048)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        print(f"Chromium {browser.version}, playwright {version('playwright')}, one core, best of {ROUNDS}")
        for name, shape in SHAPES.items():
            torch.manual_seed(0)
            model = GPT(GPTConfig(vocab_size=len(tokenizer), **shape))
            save(Path(folder, name), model, tokenizer)
            parameters = sum(parameter.numel() for parameter in model.parameters())
            for dtype, size in (("float16", 2), ("int8", 1)):
                file = Path(folder, "page.html")
                export_html(file, Path(folder, name), dtype)
                over = file.stat().st_size - size * parameters
                rounds = [_measure(browser, Path(folder, name), dtype) for _ in range(ROUNDS)]
                opening, prompt, token, views = map(min, zip(*rounds, strict=True))
                print(
                    f"  {parameters:>10,} {dtype:8}{1000 / token:6.0f} tokens/s; {PROMPT} tokens of prompt "
                    f"{prompt:.0f} ms, of the views {views:.0f} ms; read in {opening:.0f} ms; the file is "
                    f"{file.stat().st_size / 1e6:.2f} MB, the weights and {over / 1e3:.0f} KB"
                )
        browser.close()


def _measure(browser, checkpoint, dtype):
    """Opens a page of the engine alone, and takes its times."""
    modules = import_map({name: read_source(name, "gptmini.web") for name in MODULES})
    head = f'<!doctype html><meta charset="windows-1252"><script type="importmap">{modules}</script>'
    file = checkpoint / "engine.html"
    file.write_bytes(head.encode("ascii") + b"".join(embed(*read_model(checkpoint, dtype))))
    page = browser.new_page()
    page.goto(file.as_uri(), timeout=120_000)
    measured = page.evaluate(MEASURE, [PROMPT, NEW])
    page.close()
    return measured
