"""The documentation that every Python brings along, as a corpus: help topics and library docstrings.

About 2 MB of English, the same on every machine with the same Python, and nothing to download.
"""

import ast
import hashlib
import inspect
import itertools
import os
import platform
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from gptmini.data.documents import Document
from gptmini.errors import UserError

PYTHON_DOCS = "python-docs"

# Folders of the standard library without documentation of their own.
_SKIPPED = frozenset({"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "pydoc_data"})
_SKIPPED |= {"site-packages", "dist-packages", "__pycache__"}


@cache
def python_docs() -> tuple[Document, ...]:
    """Each help topic of the running interpreter, and the docstrings of each standard module, as documents.

    A paragraph that several of them contain is kept once. Raises UserError where Python was installed without
    its documentation.
    """
    help_topics: list[tuple[str, str]] = []
    with suppress(ImportError):  # a package of its own in some distributions
        from pydoc_data.topics import topics

        help_topics = [(f"help('{name}')", topics[name]) for name in sorted(topics)]
    seen: set[str] = set()
    texts = []
    for source, text in itertools.chain(help_topics, _docstrings()):
        paragraphs = []
        for paragraph in text.strip("\n").split("\n\n"):
            key = " ".join(paragraph.split())
            if key and key not in seen:
                seen.add(key)
                paragraphs.append(paragraph.rstrip())
        if paragraphs:
            texts.append((source, ("\n\n".join(paragraphs) + "\n").encode()))
    if not texts:
        raise UserError(
            f"{PYTHON_DOCS}: Python {platform.python_version()} at {sys.prefix} was installed "
            "without help topics and library sources; give the path of a text of your own"
        )
    # ordered by digest: fixed, yet as good as shuffled, so that the end of the corpus samples the whole
    texts.sort(key=lambda text: hashlib.sha256(text[1]).digest())
    return tuple(Document(source, [text]) for source, text in texts)


def _docstrings() -> Iterator[tuple[str, str]]:
    """(path, docstrings) of each module of the standard library, parsed and not imported."""

    def fail(error: OSError) -> None:
        raise error  # a folder left out in silence would be another corpus

    library = Path(sysconfig.get_path("stdlib"))
    paths = []
    for parent, folders, names in os.walk(library, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _SKIPPED]
        paths += [Path(parent, name) for name in names if name.endswith(".py") and not name.startswith(".")]
    for path in sorted(paths):
        try:
            tree = ast.parse(path.read_bytes())
        except (FileNotFoundError, PermissionError, SyntaxError, ValueError):
            continue  # a template, or source for another Python
        text = "\n\n".join(_docstrings_under(tree))
        yield path.relative_to(library).as_posix(), text.encode(errors="replace").decode()


def _docstrings_under(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[str]:
    if docstring := ast.get_docstring(node, clean=False):
        yield inspect.cleandoc(docstring)
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings_under(child)
