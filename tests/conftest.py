"""What all tests share."""

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


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path, monkeypatch):
    """Token files and downloads go to a folder of the test's own."""
    monkeypatch.setenv("GPTMINI_CACHE_DIR", str(tmp_path / "cache"))
