"""The public names of `gptmini`, and the calls of the contract from end to end on a tiny model."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gptmini

PUBLIC = ast.parse(Path(gptmini.__file__).read_text(encoding="utf-8"))


def test_the_public_names_are_those_of_the_contract():
    assert set(gptmini.__all__) >= {
        "GPT",
        "GPTConfig",
        "Config",
        "load_config",
        "Tokenizer",
        "load",
        "train",
        "generate",
        "generate_text",
        "stream",
    }


@pytest.mark.parametrize("name", gptmini.__all__)
def test_a_public_name_can_be_imported_and_says_what_it_does(name):
    names = {}
    exec(f"from gptmini import {name}", names)
    assert names[name].__doc__.strip()
    assert names[name].__doc__ != getattr(type(names[name]), "__doc__", None)
    assert name in dir(gptmini)


def test_type_checkers_see_the_same_names_from_the_same_modules():
    (block,) = (node for node in PUBLIC.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == gptmini._MODULE_OF


def test_star_imports_the_public_names_and_nothing_else():
    names = {}
    exec("from gptmini import *", names)
    assert set(names) - {"__builtins__"} == set(gptmini.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        _ = gptmini.generat


def test_importing_gptmini_alone_imports_no_torch_numpy_or_pydantic():
    code = "import sys, gptmini; print(*sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
