"""The files that a path, a folder or a glob stands for."""

import glob
import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gptmini.data.documents import STANDARD_INPUT, format_suffix
from gptmini.errors import UserError, path_error

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
    path = Path(entry)
    if os.path.isdir(path):
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
    if os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path)):  # a broken link, as below
        return [path]
    if os.path.exists(path):
        raise UserError(
            f"{key} = {entry}: a pipe or device, which cannot be read twice; pipe it into standard input and "
            f"give {STANDARD_INPUT} instead"
        )
    if glob.has_magic(entry):
        files = sorted({file for file in _match(path) if _is_text(file)})
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

    def refuse(error: OSError) -> None:
        raise path_error(error.filename, error)

    seen: set[str] = set()
    waiting = deque([str(root)])
    while waiting:
        for parent, folders, names in os.walk(waiting.popleft(), onerror=refuse):
            real = os.path.realpath(parent)
            if real in seen or (seen and _is_no_corpus(folders + names)):
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            paths = [os.path.join(parent, name) for name in folders]
            waiting.extend(filter(os.path.islink, paths))  # os.walk itself does not follow them
            yield Path(parent), [name for name in names if not name.startswith(".")]


def _match(pattern: Path) -> Iterator[Path]:
    """The paths that match a glob; its `**` finds the folders that `walk` does."""
    before = pattern.parts[: pattern.parts.index("**")] if "**" in pattern.parts else pattern.parts
    found = map(Path, glob.glob(str(Path(*before))))
    if before == pattern.parts:
        yield from found
        return
    rest = pattern.parts[len(before) + 1 :] or ("*",)
    for root in filter(os.path.isdir, found):
        for folder, _ in walk(root):
            yield from _match(Path(glob.escape(str(folder)), *rest))


def _is_text(file: Path) -> bool:
    """Whether what a folder holds or a glob matches is read: no folder, pipe or page that gptmini wrote."""
    if not os.path.isfile(file):
        # reading a broken link says what is wrong with it; one without suffix may have led to a folder
        return file.suffix != "" and not os.path.exists(file)
    if file.suffix == ".html":
        with suppress(OSError), open(file, "rb") as page:  # reading it later says what is wrong
            return re.search(rb'name="generator" content="gptmini \d', page.read(500)) is None
    return True


def _is_no_corpus(names: list[str]) -> bool:
    return any(marks.issubset(names) for marks in _NO_CORPUS)
