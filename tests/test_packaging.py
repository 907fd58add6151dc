"""What is built from the repository: a wheel for users, an sdist for builders."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The names in the wheel and in the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as files, tarfile.open(sdist) as archive:
        return set(files.namelist()), {name.partition("/")[2] for name in archive.getnames()}


def package_files():
    found = (path for path in (ROOT / "gptmini").rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_package_its_configs_and_nothing_else(built):
    wheel, _ = built
    configs = {f"gptmini/configs/{path.name}" for path in (ROOT / "configs").iterdir()}
    assert {name for name in wheel if ".dist-info/" not in name} == package_files() | configs
    assert any(name.endswith("entry_points.txt") for name in wheel)
    assert "gptmini/py.typed" in wheel


def test_the_sdist_holds_what_building_and_testing_need(built):
    _, sdist = built
    needed = {
        "pyproject.toml",
        "Makefile",
        "constraints.txt",
        "README.md",
        "CITATION.cff",
        "tests/conftest.py",
    }
    assert package_files() | needed <= sdist
