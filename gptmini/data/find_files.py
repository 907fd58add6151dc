"""The files that a path, a folder or a glob stands for."""

import fnmatch
import glob
import os
import re
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gptmini.data.documents import STANDARD_INPUT, format_suffix
from gptmini.errors import UserError, is_machine_error, path_error

# What is read from a folder. A file that is named, or that a glob matches, is read whatever its suffix.
TEXT_SUFFIXES = frozenset(
    {".txt", ".text", ".md", ".markdown", ".rst", ".org", ".tex", ".srt", ".csv", ".tsv"}
    | {".html", ".htm", ".css", ".xml", ".json", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".sql", ".sh"}
    | {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".swift"}
    | {".js", ".jsx", ".ts", ".tsx", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".scala", ".hs", ".ml"}
    | {".jsonl", ".ndjson", ".parquet"}
)

# A folder with one of these pairs in it holds a run, a step, a model, or prepared tokens: no text of the
# user's. CACHEDIR.TAG is how programs mark a cache (bford.info/cachedir).
_NO_CORPUS = (
    {"config.yaml", "metrics.jsonl"},
    {"config.yaml", "checkpoints"},
    {"manifest.json", "training"},
    {"config.json", "model.safetensors"},
    {"meta.json", "train.bin"},
    {"tokenizer.json", "digest"},
    {"CACHEDIR.TAG"},
)


def find_files(entry: str, key: str) -> list[Path]:
    """The files that a path or glob stands for, sorted; empty if it is no glob and no such path exists.

    Folders are searched as `walk` does for TEXT_SUFFIXES (with or without .gz). Raises UserError for a folder
    without text, a glob without match, and what is no file.
    """
    path, mode = Path(entry), _mode(entry)
    if stat.S_ISDIR(mode):
        files = [folder / name for folder, names in walk(path) for name in names]
        if _is_no_corpus(os.listdir(path)):
            raise UserError(
                f"{key} = {entry}: this folder is a run, a model or a cache, which are left out of a corpus; "
                "name the files in it that you want"
            )
        files = [file for file in files if format_suffix(file) in TEXT_SUFFIXES and _is_text(file)]
        if not files:
            raise UserError(
                f"{key} = {entry}: this folder holds no text file; the suffixes read from a folder are "
                f"{' '.join(sorted(TEXT_SUFFIXES))} (any file can be named by itself or by a glob)"
            )
        return sorted(files)
    if stat.S_ISREG(mode) or (not mode and os.path.islink(path)):  # a broken link, as below
        return [path]
    if mode:
        raise UserError(
            f"{key} = {entry}: a pipe or device, which cannot be read twice; pipe it into standard input and "
            f"give {STANDARD_INPUT} instead"
        )
    if glob.has_magic(entry):
        matches = _match(Path(path.anchor), path.relative_to(path.anchor).parts)
        files = sorted(set(filter(_is_text, matches)))
        if not files:
            left_out = " (** leaves out runs, models and caches)" if "**" in entry else ""
            raise UserError(f"{key} = {entry}: no file matches this pattern{left_out}")
        return files
    return []


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from `root` down and the names of its files, without hidden ones.

    Links are followed, after all that is reached without them, and each folder is visited once, so a loop of
    links ends. Runs, models and caches below `root` are left out.
    """

    seen: set[str] = set()
    waiting = deque([str(root)])
    while waiting:
        for parent, folders, names in os.walk(waiting.popleft(), onerror=_refuse):
            real = os.path.realpath(parent)
            if real in seen or (seen and _is_no_corpus(folders + names)):
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            paths = [os.path.join(parent, name) for name in folders]
            waiting.extend(filter(os.path.islink, paths))  # os.walk itself does not follow them
            yield Path(parent), [name for name in names if not name.startswith(".")]


def _match(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """The paths below a folder that match the parts of a glob; its `**` finds the folders that `walk` does.

    glob.glob would leave out a folder in silence where the machine fails to list it.
    """
    if not parts:
        yield folder
        return
    if not stat.S_ISDIR(_mode(folder)):
        return
    part, *rest = parts
    if part == "**":
        for below, _ in walk(folder):
            yield from _match(below, rest or ["*"])
    elif glob.has_magic(part):
        names: list[str] = []
        with _machine_errors_only():
            names = os.listdir(folder)
        for name in fnmatch.filter(names, part):
            if part.startswith(".") or not name.startswith("."):
                yield from _match(folder / name, rest)
    elif _mode(folder / part) or os.path.islink(folder / part):
        yield from _match(folder / part, rest)


def _is_text(file: Path) -> bool:
    """Whether what a folder holds or a glob matches is read: no folder, pipe or page that gptmini wrote."""
    mode = _mode(file)
    if not stat.S_ISREG(mode):
        # reading a broken link says what is wrong with it; one without suffix may have led to a folder
        return file.suffix != "" and not mode
    if file.suffix == ".html":
        try:
            with open(file, "rb") as page:
                return re.search(rb'name="generator" content="gptmini \d', page.read(500)) is None
        except OSError as error:
            raise path_error(file, error) from None
    return True


def _mode(path: str | Path) -> int:
    """What stat says of the file that a path leads to; 0 where there is none, or none that may be seen."""
    mode = 0
    with _machine_errors_only():
        mode = os.stat(path).st_mode
    return mode


@contextmanager
def _machine_errors_only() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: no file can have such a path
        if is_machine_error(error):
            raise


def _refuse(error: OSError) -> None:
    raise path_error(error.filename, error)


def _is_no_corpus(names: list[str]) -> bool:
    return any(marks.issubset(names) for marks in _NO_CORPUS)
