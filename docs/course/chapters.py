"""The code of the chapters, run from the first on in one namespace: each chapter continues the one before.

python -i docs/course/chapters.py 4      runs chapters 0 to 4 and leaves a prompt with all their names
%run -i ../chapters.py 4                 the same in a notebook
"""

import contextlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

COURSE = Path(__file__).resolve().parent
CHAPTERS = sorted(COURSE.glob("[01][0-9]-*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)


class Snippet(NamedTuple):
    """A block of Python in a chapter, and what the chapter says that it prints."""

    code: str
    prints: str
    line: int


def blocks(chapter: int) -> list[Snippet]:
    """The Python blocks of a chapter, in order; a text block right after one is what it prints."""
    page = CHAPTERS[chapter].read_text(encoding="utf-8")
    return [
        Snippet(found[1], found[2] or "", page.count("\n", 0, found.start(1)) + 1)
        for found in BLOCK.finditer(page)
    ]


def run_block(chapter: int, block: Snippet, names: dict[str, Any]) -> str:
    """Run a block in `names`; returns what it prints. A traceback shows the line of the chapter."""
    printed = io.StringIO()
    code = compile("\n" * (block.line - 1) + block.code, str(CHAPTERS[chapter]), "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue()


def run(last: int, names: dict[str, Any]) -> None:
    """Run chapters 0 to `last` in `names`, quietly. They read the text and the exercises from this folder."""
    os.chdir(COURSE)
    sys.path.insert(0, str(COURSE))
    for chapter in range(last + 1):
        for block in blocks(chapter):
            run_block(chapter, block, names)


if __name__ == "__main__":
    run(int(sys.argv[1]), globals())
