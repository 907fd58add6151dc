"""The documentation site: every key and command, links that lead somewhere, nothing from outside."""

import importlib.util
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import gptmini
from gptmini.cli.commands import COMMANDS
from gptmini.config import Config
from gptmini.schema import flatten_schema

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("site_pages", ROOT / "scripts/site_pages.py")
site_pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(site_pages)


class Loaded(HTMLParser):
    """The addresses that a page loads by itself: not those that a reader may click."""

    def __init__(self, page):
        super().__init__()
        self.addresses = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        names = {"script": "src", "img": "src", "source": "srcset", "link": "href", "iframe": "src"}
        if tag in names and (address := dict(attributes).get(names[tag])):
            self.addresses.append(address)


def test_every_key_command_and_public_name_has_its_place():
    keys, commands, python = site_pages.config_page(), site_pages.commands_page(), site_pages.python_page()
    assert all(f"### `{key}`" in keys for key in flatten_schema(Config))
    assert all(f"\n## {name}\n" in commands for name in COMMANDS)
    assert all(f".{name}\n" in python for name in gptmini.__all__)


@pytest.mark.parametrize(
    ("source", "text", "site"),
    [
        ("README.md", "[a](docs/own-text.md)", "[a](own-text.md)"),
        ("README.md", "[a](ARCHITECTURE.md#decisions)", "[a](architecture.md#decisions)"),
        ("docs/course/README.md", "[a](../glossary.md)", "[a](../glossary.md)"),
        ("docs/fine-tune.md", "[a](../examples/finetune.py)", "[a](examples.md)"),
        ("docs/log.md", "[a](../ARCHITECTURE.md)", "[a](architecture.md)"),
    ],
)
def test_links_lead_to_the_page_on_the_site(source, text, site):
    assert site_pages.site_links(text, source) == site


def test_examples_in_docstrings_become_code():
    text = "Adds.\n\n>>> 1 + 1\n2\n\nEnd."
    assert site_pages.fence_doctests(text) == "Adds.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nEnd."


def test_the_site_builds_strictly_and_loads_nothing_from_outside(tmp_path, long):
    if not long:
        pytest.skip("takes some ten seconds: --long")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    assert not any("unpkg.com" in path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.js"))
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        for address in Loaded(page.read_text(encoding="utf-8")).addresses:
            assert not re.match(r"(https?:)?//", address), (page, address)
            if not address.startswith("data:"):
                folder = tmp_path if address.startswith("/") else page.parent  # 404.html: from the top
                assert (folder / re.split("[?#]", address)[0].lstrip("/")).exists(), (page, address)
