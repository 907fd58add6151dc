"""The course: every block runs and prints what the page shows; exercises, notebooks and stations are true."""

import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
import torch

ROOT = Path(__file__).parent.parent
COURSE = ROOT / "docs/course"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


chapters = load(COURSE / "chapters.py")
exercises = load(COURSE / "exercises.py")
NUMBERS = range(len(chapters.CHAPTERS))
PAGES = {n: path.read_text(encoding="utf-8") for n, path in enumerate(chapters.CHAPTERS)}


class Student:
    """Runs the chapters in order, each once."""

    def __init__(self):
        self.names, self.printed = {}, []

    def read(self, chapter):
        while len(self.printed) <= chapter:
            n = len(self.printed)
            self.printed.append([chapters.run_block(n, block, self.names) for block in chapters.blocks(n)])
        return self.printed[chapter]


@pytest.fixture(scope="module")
def student():
    folder, path, threads = Path.cwd(), list(sys.path), torch.get_num_threads()
    os.chdir(COURSE)
    sys.path.insert(0, str(COURSE))
    with torch.random.fork_rng():
        yield Student()
    os.chdir(folder)
    sys.path[:] = path
    torch.set_num_threads(threads)


NUMBER = re.compile(r"(~ ?)?(-?\d+\.?\d*)( us)?")


def same_line(printed, shown):
    """Equal, but for a number after ~, which may be 5 % off, and one before us (a time), which may be any."""
    if NUMBER.sub("#", printed) != NUMBER.sub("#", shown):
        return False
    return all(
        got[1] == wanted[1]
        or wanted[2]
        or (wanted[0] and float(got[1]) == pytest.approx(float(wanted[1]), rel=0.05))
        for got, wanted in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
    )


def assert_prints(printed, shown):
    assert len(printed.splitlines()) == len(shown.splitlines()), printed
    for got, wanted in zip(printed.splitlines(), shown.splitlines(), strict=True):
        assert same_line(got, wanted), (got, wanted)


@pytest.mark.parametrize("chapter", NUMBERS)
def test_every_block_prints_what_the_chapter_shows(chapter, student):
    for block, printed in zip(chapters.blocks(chapter), student.read(chapter), strict=True):
        assert_prints(printed, block.prints)


def test_the_comparison_notices_other_numbers_and_words():
    assert same_line("loss ~2.41, 31 us", "loss ~2.44, 7 us")
    assert not same_line("loss ~2.81", "loss ~2.44")
    assert not same_line("loss 2.41", "loss 2.44")
    assert not same_line("True", "False")
    with pytest.raises(AssertionError):
        assert_prints("1\n2\n", "1\n")


def test_no_block_is_missed():
    for n, page in PAGES.items():
        assert len(chapters.blocks(n)) == page.count("```python\n") >= 4


def test_no_chapter_defines_what_another_has_defined():
    owner = {}
    for n in NUMBERS:
        for block in chapters.blocks(n):
            for node in ast.parse(block.code).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    assert owner.setdefault(node.name, n) == n, (
                        f"{node.name} in chapters {owner[node.name]} and {n}"
                    )


def test_the_chapters_use_no_name_of_the_runner(student):
    """Else `python -i chapters.py 12` would overwrite itself."""
    student.read(12)
    assert not {"Snippet", "blocks", "run_block", "run", "BLOCK", "CHAPTERS", "COURSE"} & student.names.keys()


def test_each_model_is_better_than_the_one_before_and_the_last_better_than_gzip(student):
    student.read(9)
    losses, baselines = list(student.names["losses"].values()), student.names["baselines"]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 6
    assert losses[-1] / torch.log(torch.tensor(2.0)) < baselines["gzip"]


def test_the_model_of_the_course_gives_gptminis_logits_bit_for_bit(student):
    student.read(12)
    ours, real = student.names["gpt"], student.names["model"]
    tokens = torch.randint(student.names["V"], (4, 32), generator=torch.Generator().manual_seed(1))
    assert dict(real.named_parameters()).keys() == dict(ours.named_parameters()).keys()
    assert torch.equal(ours(tokens), real(tokens))


# ------------------------------------------------------------------------------------------ stations


def stations(page):
    """The (path, names) of a chapter's last list: where its subject lives."""
    section = page.partition("\n## Where it lives in gptmini\n")[2].partition("\n## ")[0]
    return re.findall(r"^- `(gptmini/[\w/]+\.py)`, `([\w.]+)`", section, re.MULTILINE)


@pytest.mark.parametrize("chapter", NUMBERS)
def test_each_chapter_ends_with_places_that_exist(chapter):
    found = stations(PAGES[chapter])
    assert len(found) >= 2
    for path, name in found:
        node = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        for part in name.split("."):
            node = next((child for child in node.body if getattr(child, "name", None) == part), None)
            assert node is not None, f"{path} has no {name}"


# ----------------------------------------------------------------------------------------- exercises

EXERCISES = sorted(exercises.CHECKS, key=lambda number: [int(part) for part in number.split(".")])


def calls(page):
    return re.findall(r'^check\("([\d.]+)", (\w+)\)', page, re.MULTILINE)


def hint(number, function):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exercises.check(number, function)
    return printed.getvalue().strip()


def test_every_exercise_has_a_check_and_stands_in_its_chapter():
    assert [number for page in PAGES.values() for number, _ in calls(page)] == EXERCISES
    assert all(number.split(".")[0] == str(n) for n, page in PAGES.items() for number, _ in calls(page))


@pytest.mark.parametrize("chapter", NUMBERS)
def test_the_solutions_are_right_and_the_empty_exercises_are_not(chapter, student):
    solutions = load(COURSE / f"solutions/chapter_{chapter:02}.py")
    student.read(chapter)
    for number, name in calls(PAGES[chapter]):
        assert hint(number, getattr(solutions, name)) == f"{number}: right"
        assert "right" not in hint(number, student.names[name])


@pytest.mark.parametrize(
    ("number", "wrong", "says"),
    [
        ("3.1", lambda table, tokens: table[tokens].transpose(1, 2), "same sizes in another order"),
        ("3.1", lambda table, tokens: table[tokens].flatten(0, 1), "(B, T, C) = (2, 4, 3)"),
        ("1.2", lambda x: x / x.norm(), "right shape and other numbers"),
        ("1.1", lambda T: torch.arange(T) - torch.arange(T)[:, None], "transposed, they are right"),
        ("5.2", lambda scores: scores.exp() / scores.exp().sum(-1, keepdim=True), "NaN"),
        ("4.1", lambda windows: torch.stack(windows), "should return 2 things"),
        ("0.1", lambda train, val, V: 1 / 0, "raises ZeroDivisionError"),
        ("6.1", lambda q, k, mask: (q @ k.mT).softmax(-1), "differ, the first at [0, 0, 0]"),
    ],
)
def test_a_wrong_answer_gets_a_hint(number, wrong, says):
    assert says in hint(number, wrong)


# ------------------------------------------------------------------------- notebooks and pictures


def test_the_notebooks_are_the_chapters():
    """Made anew by: python docs/course/make_notebooks.py"""
    sys.path.insert(0, str(COURSE))
    try:
        make_notebooks = load(COURSE / "make_notebooks.py")
    finally:
        sys.path.remove(str(COURSE))
    for chapter, path in enumerate(chapters.CHAPTERS):
        stored = (COURSE / "notebooks" / path.with_suffix(".ipynb").name).read_text(encoding="utf-8")
        assert json.loads(stored) == json.loads(make_notebooks.notebook(chapter)), path.name


def test_the_notebooks_run(long):
    """All of them with --long, else a short one that needs the chapters before it."""
    for chapter in NUMBERS if long else [3]:
        name = chapters.CHAPTERS[chapter].with_suffix(".ipynb").name
        book = nbformat.read(COURSE / "notebooks" / name, as_version=4)
        assert all(not cell.get("outputs") for cell in book.cells)
        nbclient.NotebookClient(
            book, timeout=600, resources={"metadata": {"path": COURSE / "notebooks"}}
        ).execute()
        printed = [
            "".join(output.get("text", "") for output in cell.outputs)
            for cell in book.cells
            if cell.cell_type == "code"
        ]
        shown = [block.prints for block in chapters.blocks(chapter)]
        for got, wanted in zip(printed[1:], shown, strict=True):  # the first cell prepares
            assert_prints(got, wanted)


def test_every_picture_is_there_for_light_and_dark_pages():
    shown = {name for page in PAGES.values() for name in re.findall(r'"images/([\w-]+\.svg)"', page)}
    assert shown == {path.name for path in (COURSE / "images").iterdir()}
    assert {name.replace("-dark", "") for name in shown if "-dark" in name} == {
        n for n in shown if "-dark" not in n
    }
