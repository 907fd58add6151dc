"""The chapters as notebooks, by jupytext: docs/course/notebooks/, without outputs.

python docs/course/make_notebooks.py
"""

import re

import jupytext
import nbformat
from chapters import CHAPTERS, COURSE

FOLDER = COURSE / "notebooks"
FIRST_CELL = """\
# Installs gptmini, where it is missing, from the checkout of this notebook. (In Colab, clone it first.)
import importlib.util, os

if os.path.basename(os.getcwd()) == "notebooks":
    os.chdir("..")
if importlib.util.find_spec("gptmini") is None:
    %pip install --quiet ../.."""


def notebook(chapter: int) -> str:
    """The chapter as the text of an .ipynb file."""
    page = CHAPTERS[chapter].read_text(encoding="utf-8")
    # A notebook lies a folder deeper than its chapter.
    page = re.sub(r'(\]\(|"|, )(?=images/|solutions/|\.\./)', r"\1../", page)
    book = jupytext.reads(page, fmt="md")
    first = FIRST_CELL
    if chapter:  # a magic, not an import: it defines its names in the notebook
        first += f"\n\n# Run the chapters before this one.\n%run -i chapters.py {chapter - 1}"
    book.cells.insert(1, nbformat.v4.new_code_cell(first))
    for number, cell in enumerate(book.cells):
        cell["id"] = f"cell-{number}"  # jupytext draws a new one each time
        cell["metadata"] = {}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    return nbformat.writes(book, version=4) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for chapter, path in enumerate(CHAPTERS):
        (FOLDER / path.with_suffix(".ipynb").name).write_text(notebook(chapter), encoding="utf-8")
