"""gptmini.data.find_files: which files a path, a folder or a glob stands for."""

import builtins
import errno
import os
from functools import partial
from pathlib import Path

import pytest
from test_documents import texts

from gptmini import report
from gptmini.data.corpus import open_corpus
from gptmini.data.find_files import find_files
from gptmini.errors import UserError


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def found(entry: Path) -> list[str]:
    return [file.name for file in find_files(str(entry), "data.corpus")]


@pytest.mark.parametrize(
    "files",
    [
        ["config.yaml", "metrics.jsonl", "samples.jsonl", "checkpoints/step-00000001/config.json"],
        ["config.yaml", "metrics.jsonl"],
        ["config.json", "model.safetensors", "tokenizer.json"],
        ["manifest.json", "training/state.json"],
        ["meta.json", "train.bin", "tokenizer.json"],
        ["tokenizer.json", "digest"],
        ["CACHEDIR.TAG", "tokens/notes.txt", "tiny-shakespeare.txt"],
    ],
    ids=lambda files: " ".join(files[:2]),
)
def test_runs_models_and_caches_are_no_corpus(tmp_path, files):
    make(tmp_path, "a.txt", "b/c.json", *(f"runs/x/{name}" for name in files))
    assert found(tmp_path) == ["a.txt", "c.json"]
    assert found(tmp_path / "**" / "*.*") == ["a.txt", "c.json"]
    with pytest.raises(UserError, match=r"corpus = .*/runs/x: this folder is a run, a model or a cache"):
        find_files(str(tmp_path / "runs" / "x"), "data.corpus")
    # named, or by a glob without **, each of its files can be read
    name = next(name for name in files if "/" not in name)
    assert found(tmp_path / "runs" / "x" / name) == found(tmp_path / "runs" / "*" / name) == [name]


def test_a_report_is_no_corpus(tmp_path):
    make(tmp_path, "a.txt", "b.html")
    template = Path(report.__file__).with_name("report.html")
    (tmp_path / "report.html").write_text(template.read_text().replace("{{VERSION}}", "0.1.0"))
    for entry in (tmp_path, tmp_path / "*.*", tmp_path / "**"):
        assert found(entry) == ["a.txt", "b.html"]
    assert found(tmp_path / "report.html") == ["report.html"]


def test_a_folder_and_a_glob_follow_the_same_links_each_once(tmp_path):
    make(
        tmp_path, "corpus/a.txt", "corpus/z/b.txt", "elsewhere/c.txt", "elsewhere/deep/d.txt", ".hidden/e.txt"
    )
    corpus = tmp_path / "corpus"
    for link, target in {
        "a_link": "z",  # also reached without the link, which keeps its place in the order
        "linked": "../elsewhere",
        "again": "../elsewhere/deep",
        "z/loop": "..",
        "self": "self",
    }.items():
        (corpus / link).symlink_to(target)
    expected = ["a.txt", "d.txt", "c.txt", "b.txt"]
    assert found(corpus) == found(corpus / "**" / "*.txt") == expected
    assert found(corpus / "**") == expected
    assert [text.decode() for text in texts(open_corpus(str(corpus)))] == [
        "corpus/a.txt", "elsewhere/deep/d.txt", "elsewhere/c.txt", "corpus/z/b.txt"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["l.txt", "gone.txt"])
def test_a_link_that_leads_nowhere_is_one_line(tmp_path, name):
    make(tmp_path, "a.txt")
    (tmp_path / name).symlink_to(name if name == "l.txt" else "nowhere")
    for entry in (tmp_path, tmp_path / name, tmp_path / "*", tmp_path / "**" / "*.txt"):
        with pytest.raises(UserError, match=rf"{name}: cannot be read: (Too many levels|No such file)"):
            texts(open_corpus(str(entry)))


def test_a_glob_may_have_several_recursive_parts_and_special_characters_in_its_folders(tmp_path, monkeypatch):
    make(tmp_path, "x[1]/y/b.txt", "x[1]/y/z/b.txt", "x[1]/c.txt", "y/b.txt", ".h/y/b.txt")
    monkeypatch.chdir(tmp_path)
    names = [str(file) for file in find_files("**/y/**/*.txt", "data.corpus")]
    assert names == [
        os.path.join(*parts)
        for parts in (("x[1]", "y", "b.txt"), ("x[1]", "y", "z", "b.txt"), ("y", "b.txt"))
    ]


@pytest.mark.parametrize("entry", ["~nobody-of-that-name/x", "a" * 5000, "a\nb"])
def test_an_odd_path_is_no_such_file(entry):
    with pytest.raises(UserError, match="no such file or folder"):
        open_corpus(entry)


def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path, monkeypatch):
    make(tmp_path, "a.txt", "sub/b.txt")

    def denied(function, path):
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return function(path)

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, partial(denied, getattr(os, name)))
    for folder in (tmp_path / "sub", tmp_path):
        with pytest.raises(UserError, match=rf"{folder}: cannot be read: Permission denied"):
            find_files(str(tmp_path), "data.corpus")


@pytest.mark.parametrize(
    ("function", "place"), [("listdir", "b"), ("stat", "b"), ("stat", "b/x.txt"), ("open", "b/y.html")]
)
def test_a_failing_machine_leaves_nothing_out(tmp_path, monkeypatch, function, place):
    make(tmp_path, "a/x.txt", "b/x.txt", "b/y.html")
    entry = str(tmp_path / "*" / "*.*")
    assert [path.name for path in find_files(entry, "data.corpus")] == ["x.txt", "x.txt", "y.html"]
    where = builtins if function == "open" else os
    real = getattr(where, function)

    def failing(path, *args, **options):
        if Path(path) == tmp_path / place:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(where, function, failing)
    with pytest.raises(OSError, match="Input/output error"):
        find_files(entry, "data.corpus")


def test_a_page_that_cannot_be_read_is_one_line_as_other_files_are(tmp_path, monkeypatch):
    make(tmp_path, "a.html")

    def denied(*args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(UserError, match=r"a\.html: cannot be read: Permission denied"):
        texts(open_corpus(str(tmp_path)))
