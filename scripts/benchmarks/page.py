"""The page: how fast it computes in Chromium on one core, and how large its file is."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from playwright.sync_api import Browser, Page, sync_playwright

from gptmini.checkpoint.gpt2_directory import save
from gptmini.config import GPTConfig
from gptmini.data.python_docs import python_docs
from gptmini.data.tokenizers import Tokenizer
from gptmini.model import GPT
from gptmini.report.one_file import import_map, read_source
from gptmini.web.export import embed, export_html, read_model

SHAPES = [  # 3 and 39 million parameters
    {"n_layer": 6, "n_head": 6, "n_embd": 192, "context_length": 256},
    {"n_layer": 12, "n_head": 8, "n_embd": 512, "context_length": 512},
]
MODULES = ("model.js", "sampling.js", "tokenizers.js", "weights.js", "local_engine.js")
PROMPT, NEW = 128, 100
STEPS = {  # what is timed; `from` is another text each time, so that nothing of it is cached
    "open": 'window.engine = await (await import("gptmini/local_engine.js")).openEngine();',
    "prompt": f"await engine.next(null, Array.from({{ length: {PROMPT} }}, (_, i) => i + from));",
    "tokens": f"""const options = {{ max_new_tokens: {NEW}, temperature: 0.8, seed: from }};
        for await (const step of engine.generate(null, [from], options));""",
    "views": f"await engine.inspect(null, Array.from({{ length: {PROMPT} }}, (_, i) => i + from));",
}


def bench_page() -> None:
    """Speed and file size of pages with random weights.

    Seconds are Chromium's CPU time, all its processes together: on one core that is not busy, the time that
    passes. It is read from /proc, so on Linux only.
    """
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("bench.py page needs Chromium")
    text = [b"".join(document.blocks).decode() for document in python_docs()]
    tokenizer = Tokenizer.train(text, vocab_size=2048)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        print(f"Chromium {browser.version}; best of 3; of {PROMPT} tokens: prompt and views")
        for i, shape in enumerate(SHAPES):
            torch.manual_seed(0)
            model = GPT(GPTConfig(vocab_size=len(tokenizer), **shape))
            save(checkpoint := Path(folder, str(i)), model, tokenizer)
            parameters = sum(parameter.numel() for parameter in model.parameters())
            for dtype, size in (("float16", 2), ("int8", 1)):
                export_html(file := Path(folder, "page.html"), checkpoint, dtype)
                file_bytes = file.stat().st_size
                page = _open(browser, checkpoint, dtype)
                seconds = {name: _time(page, code) for name, code in STEPS.items()}
                page.close()
                times = ", ".join(f"{name} {seconds[name]:.2f} s" for name in ("prompt", "views", "open"))
                over = (file_bytes - size * parameters) / 1e3
                print(
                    f"  {parameters:>10,} {dtype:8}{NEW / seconds['tokens']:5.0f} tokens/s, {times}; "
                    f"{file_bytes / 1e6:.2f} MB, the weights and {over:.0f} KB"
                )
        browser.close()


def _open(browser: Browser, checkpoint: Path, dtype: str) -> Page:
    """A page of the engine alone."""
    modules = import_map({name: read_source(name, "gptmini.web") for name in MODULES})
    head = f'<!doctype html><meta charset="windows-1252"><script type="importmap">{modules}</script>'
    file = checkpoint / "engine.html"
    file.write_bytes(head.encode("ascii") + b"".join(embed(*read_model(checkpoint, dtype))))
    page = browser.new_page()
    page.set_default_timeout(0)
    page.goto(file.as_uri())
    return page


def _time(page: Page, code: str) -> float:
    """The CPU seconds of a step, the fewest of three times; the engine is opened once."""
    rounds = []
    for i in range(1 if "openEngine" in code else 4):  # the first of four compiles
        before = _cpu_seconds()
        page.evaluate(f"async (from) => {{ {code} }}", i)
        rounds.append(_cpu_seconds() - before)
    return min(rounds)


def _cpu_seconds() -> float:
    """CPU time of all processes that descend from this one."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        pid = int(path.parent.name)
        parents[pid] = int(fields[1])
        seconds[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descends(pid: int) -> bool:
        return pid in parents and (parents[pid] == os.getpid() or descends(parents[pid]))

    return sum(seconds[pid] for pid in seconds if descends(pid))
