"""The pages: their Python runs, their commands and options exist, their links and paths lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

import gptmini
from gptmini.cli.main import main
from gptmini.config import load_config

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md")),
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
]
HISTORY = {"docs/log.md", "docs/results.md"}  # what was measured then, under the names of then
TEXT = "It was a bright cold day in April. The clocks were striking thirteen, said the cat.\n" * 100


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", read(page), re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def commands(page):
    """The `gptmini` lines of a page's blocks, each as a list of arguments."""
    text = "\n".join(blocks(page, "")).replace("\\\n", " ")
    lines = re.findall(r"^(?:\S*bin/)?gptmini (.*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


COMMANDS = [(page, args) for page in PAGES for args in commands(page)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A new current directory with a text of one's own."""
    monkeypatch.chdir(tmp_path)
    Path("my_text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def train_my_text():
    return gptmini.train(
        {
            "model": {"n_layer": 1, "n_head": 1, "n_embd": 16, "context_length": 16},
            "data": {"corpus": "my_text.txt"},
            "tokenizer": {"kind": "bytes"},
            "train": {"out_dir": "runs/my_text", "max_steps": 2, "batch_size": 2},
        },
        quiet=True,
    )


def run_python(page):
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block.replace("step-00000800", "step-00000002"), page, "exec"), names)
    return names


# ------------------------------------------------------------------------------------------- Python


def test_the_python_of_the_api_page_runs_and_its_comments_are_true(folder, capsys):
    names = run_python("docs/python-api.md")
    out = capsys.readouterr().out
    assert "\nFalse\n" in out  # the hook banned the line break
    assert out.rstrip().endswith("2 torch.Size([4, 2, 16, 16])")
    assert names["longer"].shape[1] - len(names["tokenizer"].encode("The ")) == 20


def test_the_api_page_has_every_public_name():
    page = read("docs/python-api.md")
    for name in gptmini.__all__:
        assert re.search(rf"^## .*\b{name}\b", page, re.MULTILINE), f"no section for {name}"


@pytest.mark.parametrize("page", ["docs/interop.md", "docs/run-folder.md"])
def test_the_python_of_other_pages_runs_on_a_run_folder(page, folder):
    train_my_text()
    names = run_python(page)
    assert names["model"].num_parameters() > 0 if "model" in names else names["entry"]["step"] == 2


def test_no_python_is_left_out():
    pages = {page for page in PAGES if blocks(page, "python") and not page.startswith("docs/course/")}
    assert pages == {"README.md", "docs/python-api.md", "docs/interop.md", "docs/run-folder.md"}


def test_a_run_folder_holds_what_the_page_says(folder):
    train_my_text()
    (tree,) = blocks("docs/run-folder.md", "")
    paths = [path for path in Path("runs/my_text").rglob("*") if path.is_file()]
    for path in paths:
        assert path.name in tree
    keys = re.findall(r"^\| `(\w+)` \|", read("docs/run-folder.md"), re.MULTILINE)
    line = Path("runs/my_text/metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert re.findall(r'"(\w+)": ', line) == keys


# ------------------------------------------------------------------------------------------ commands


def test_the_yaml_of_the_own_text_page_is_a_config(folder):
    (text,) = blocks("docs/own-text.md", "yaml")
    Path("mine.yaml").write_text(text, encoding="utf-8")
    assert load_config("mine.yaml").optim.optimizer == "muon"


def test_the_own_text_lines_with_a_config_train_and_generate(folder, capsys):
    copy = next(
        line for line in "".join(blocks("docs/own-text.md", "")).splitlines() if line.startswith("cp ")
    )
    source, target = copy.split()[1:]
    Path(target).write_text((ROOT / source).read_text(encoding="utf-8"), encoding="utf-8")
    train_my_text()  # the recipe without a config has its own folder
    assert (
        main(["train", target, "--train.max-steps", "3", "--train.sample-interval", "null", "--quiet"]) == 0
    )
    assert main(["generate", "runs/mine", "--prompt", "Once", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("Once")


def test_the_refused_line_of_the_own_text_page_prints_what_the_page_shows(folder, capsys):
    (block,) = (block for block in blocks("docs/own-text.md", "") if block.startswith("$ "))
    command, message = block.splitlines()
    Path("mine.yaml").write_text("{}", encoding="utf-8")
    assert main(shlex.split(command)[2:]) == 2
    assert capsys.readouterr().err.strip() == message


def test_the_line_that_plans_gpt2_xl_prints_its_size(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (args,) = (args for page, args in COMMANDS if page == "docs/own-text.md" and args[0] == "plan")
    assert main(args) == 0
    assert "1,557,611,200" in capsys.readouterr().out


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 15
    assert {args[0] for _, args in COMMANDS} >= {"train", "generate", "evaluate", "report", "plan", "export"}


@pytest.mark.parametrize(
    ("page", "args"), COMMANDS, ids=lambda value: value if isinstance(value, str) else value[0]
)
def test_every_option_of_a_command_exists(page, args, capsys):
    assert main([args[0], "--help"]) == 0
    known = set(re.findall(r"--[\w.-]+", capsys.readouterr().out))
    for option in args[1:]:
        if option.startswith("--"):
            assert option.partition("=")[0] in known | {"--help"}


# ----------------------------------------------------------------------------------- links and paths


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)]+)\)", read(page)):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


@pytest.mark.parametrize("page", [page for page in PAGES if page not in HISTORY])
def test_every_path_that_a_page_names_exists(page):
    folders = "configs|docs|examples|gptmini|scripts|tests"
    for path in re.findall(rf"(?<![\w/.])(?:{folders})/[\w./-]*\w", read(page)):
        assert (ROOT / path).exists(), path


def test_every_file_of_the_architecture_page_exists_and_every_package_file_is_on_it():
    tree = re.search(r"^```\ngptmini/\n(.*?)^```", read("ARCHITECTURE.md"), re.DOTALL | re.MULTILINE)[1]
    listed, folder = set(), []
    for line in tree.splitlines():
        indent, name = re.match(r"( *)([\w./]+)", line).groups()
        folder = folder[: len(indent) // 2 - 1]
        if name.endswith("/"):
            folder.append(name)
        else:
            listed.add("".join(folder) + name)
    found = (path.relative_to(ROOT / "gptmini").as_posix() for path in (ROOT / "gptmini").rglob("*.py"))
    assert listed == {name for name in found if not name.endswith("__init__.py")} | {"__init__.py"}


def test_install_lines_name_extras_that_exist():
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    lines = [
        line for page in PAGES if page not in HISTORY for line in re.findall(r"pip install.*", read(page))
    ]
    assert lines
    for line in lines:
        assert "gptmini[" not in line  # not on a package index
        for extra in re.findall(r"\.\[(\w+)\]", line):
            assert extra in extras
