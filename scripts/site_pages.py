"""Pages of the documentation site that no file in docs/ holds, made when `make docs` builds it.

The README and other pages of the root, every config key from the schema, every command from its help, and the
Python API from its docstrings. mkdocs calls the functions whose names begin with `on_`.
"""

import contextlib
import inspect
import io
import os
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe

import gptmini
from gptmini.cli.commands import COMMANDS
from gptmini.cli.main import USAGE, main
from gptmini.config import Config
from gptmini.schema import describe_type, flatten_schema, format_value

ROOT = Path(__file__).parent.parent
PAGES = {  # of the root, by the name that they have on the site
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples": "examples.md",
}
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


class FenceDoctests(griffe.Extension):
    """Examples in docstrings as blocks of code: in Markdown, >>> would be a quotation."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class and function that is read."""
        if obj.docstring:
            obj.docstring.value = fence_doctests(obj.docstring.value)


def fence_doctests(text: str) -> str:
    """The text with a fence around each doctest, which ends with a blank line."""
    return re.sub(r"^>>> .*?(?=\n\n|\Z)", r"```pycon\n\g<0>\n```", text, flags=re.DOTALL | re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    made = {"reference/config.md": config_page(), "reference/commands.md": commands_page()}
    made |= {"reference/python.md": python_page(), "examples.md": examples_page()}
    for source, page in PAGES.items():
        if source.endswith(".md"):
            made[page] = site_links((ROOT / source).read_text(encoding="utf-8"), source)
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links of a page in docs/ that lead out of it lead to the page that is made."""
    if page.file.generated_by:
        return markdown
    return site_links(markdown, f"docs/{page.file.src_uri}")


def on_post_build(config: Any) -> None:
    """Take the addresses out of the theme's script from which it would load what it lacks."""
    for path in Path(config.site_dir, "assets/javascripts").glob("bundle*.js"):
        script = path.read_text(encoding="utf-8")
        script = re.sub(r"https://unpkg\.com/[^\"]*", "data:text/javascript,", script)
        path.write_text(script, encoding="utf-8")


def site_links(text: str, source: str) -> str:
    """The text of a file, with links as the site has them: `docs/x.md` in the README is x.md there."""
    page = PAGES.get(source, source.removeprefix("docs/"))

    def replace(found: re.Match[str]) -> str:
        if "://" in found[2]:
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        target = "examples" if target.startswith("examples/") else target
        target = PAGES.get(target, target.removeprefix("docs/"))
        return found[1] + posixpath.relpath(target, posixpath.dirname(page) or ".") + found[3]

    return LINK.sub(replace, text)


def config_page() -> str:
    """Every config key: what it takes, its default, its sentence."""
    lines = ["# Config keys", "", "All keys of a config, each also an option: `--train.max-steps 500`."]
    section = ""
    for key, node in flatten_schema(Config).items():
        if key.partition(".")[0] != section:
            section = key.partition(".")[0]
            lines += [
                "",
                f"## {section}",
                "",
                inspect.getdoc(Config.model_fields[section].annotation) or "",
            ]
        default = format_value(node["default"]) if "default" in node else "none"
        lines += ["", f"### `{key}`", "", node.get("description", "")]
        lines += ["", f"Takes {describe_type(node)}. Default: `{default}`."]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Every command, as its --help says."""
    lines = ["# Commands", "", "```text", USAGE, "```"]
    os.environ["COLUMNS"] = "100"
    for name in COMMANDS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            main([name, "--help"])
        lines += ["", f"## {name}", "", "```text", printed.getvalue().rstrip(), "```"]
    return "\n".join(lines) + "\n"


def python_page() -> str:
    """Every public name, from its docstring."""
    head = "# Python reference\n\nFrom the docstrings; [Python API](../python-api.md) has examples.\n"
    names = [f"::: {getattr(gptmini, name).__module__}.{name}" for name in gptmini.__all__]
    return "\n\n".join([head, *names]) + "\n"


def examples_page() -> str:
    """The scripts in examples/, whole."""
    lines = ["# Whole scripts", "", "They lie in `examples/`; tests run each."]
    for path in sorted((ROOT / "examples").glob("*.py")):
        lines += ["", f"## {path.name}", "", "```python", path.read_text(encoding="utf-8").rstrip(), "```"]
    return "\n".join(lines) + "\n"
