"""What all tests share."""

import contextlib
import os
import shutil
import threading

import pytest
from tqdm import tqdm

# tqdm shares its own lock with forked processes: one killed while it holds the lock would keep it for ever.
tqdm.set_lock(threading.RLock())


def pytest_addoption(parser):
    parser.addoption(
        "--long", action="store_true", help="run the reliability proofs in full (make reliability)"
    )


@pytest.fixture
def long(request):
    """Whether the proofs are to be run in full."""
    return request.config.getoption("--long")


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium driven by Playwright; without one of them the test is skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])  # as root
        yield browser
        browser.close()


@pytest.fixture
def config_file(tmp_path):
    """A run that takes a second."""
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 60)
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""
        model: {{n_layer: 1, n_head: 2, n_embd: 16, context_length: 16}}
        data: {{corpus: {tmp_path / "text.txt"}}}
        tokenizer: {{kind: chars}}
        train: {{out_dir: {tmp_path / "run"}, max_steps: 4, batch_size: 4, eval_interval: 2}}
        runtime: {{device: cpu, threads: 1}}
        """
    )
    return path


@pytest.fixture
def in_terminal():
    """A function that calls another with standard output and error on a terminal; returns what is shown."""

    def show(function):
        here, there = os.openpty()
        shown = []

        def read():
            with contextlib.suppress(OSError):  # EIO: nobody writes any more
                while block := os.read(here, 4096):
                    shown.append(block)

        reader = threading.Thread(target=read)
        reader.start()
        with (
            open(there, "w", encoding="utf-8") as terminal,
            contextlib.redirect_stdout(terminal),
            contextlib.redirect_stderr(terminal),
        ):
            function()
        reader.join()
        os.close(here)
        return b"".join(shown).decode()

    return show


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path, monkeypatch):
    """Token files and downloads go to a folder of the test's own."""
    monkeypatch.setenv("GPTMINI_CACHE_DIR", str(tmp_path / "cache"))
