import errno
import io
import itertools
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
from test_prepare import BPE, BYTES, corpus_of, decoded, prepared

from gptmini.cli.main import main
from gptmini.config import DataConfig
from gptmini.data.corpus import Corpus
from gptmini.data.datasets import cache_folder
from gptmini.data.documents import Document
from gptmini.data.prepare import prepare, prepare_corpus
from gptmini.errors import DamagedError, UserError


def test_prepared_tokens_are_found_again_and_a_damaged_folder_is_made_anew(tmp_path, capsys):
    first = prepared(tmp_path, "some text " * 20)
    tokens = first.train[:].tolist()
    (folder,) = (cache_folder() / "tokens").glob("*/tokens")
    before = (folder / "train.bin").stat().st_mtime_ns
    assert prepared(tmp_path, "some text " * 20).digest == first.digest
    assert (folder / "train.bin").stat().st_mtime_ns == before
    for name, at in (("train.bin", 7), ("val.bin", 3), ("meta.json", 80)):
        content = bytearray((folder / name).read_bytes())
        content[at] ^= 16
        (folder / name).write_bytes(content)
        reopened = prepared(tmp_path, "some text " * 20, quiet=False)
        assert reopened.train[:].tolist() == tokens
        line = capsys.readouterr().err
        assert re.fullmatch(rf"{folder}/{name}: damaged: .*: {folder} is made again\n", line)
    (folder / "SHA256SUMS").write_bytes(b"?" + (folder / "SHA256SUMS").read_bytes()[1:])
    prepared(tmp_path, "some text " * 20, quiet=False)
    says = f"{folder}/meta.json: damaged: it does not agree with SHA256SUMS: {folder} is made again\n"
    assert capsys.readouterr().err == says


@pytest.mark.parametrize("name", ["train.bin", "SHA256SUMS", "val.sha256", "tokenizer.json", "meta.json"])
def test_a_file_that_is_missing_is_named(tmp_path, capsys, name):
    prepared(tmp_path, "some text " * 20)
    (folder,) = (cache_folder() / "tokens").glob("*/tokens")
    (folder / name).unlink()
    prepared(tmp_path, "some text " * 20, quiet=False)
    assert capsys.readouterr().err == f"{folder / name}: damaged: it is missing: {folder} is made again\n"


def test_a_file_of_a_tokenizer_that_is_missing_is_named(capsys):
    prepare_corpus(corpus_of(b"some text " * 50), 0.1, BPE, 4, quiet=True)
    (folder,) = cache_folder().glob("tokenizers/*/tokenizer")
    (folder / "digest").unlink()
    prepare_corpus(corpus_of(b"some text " * 50), 0.1, BPE, 4)
    assert f"{folder}/digest: damaged: it is missing: {folder} is made again\n" in capsys.readouterr().err


def test_a_text_has_the_name_that_is_given_now(tmp_path):
    (tmp_path / "corp").mkdir()
    (tmp_path / "corp" / "a.txt").write_text("some text " * 20)
    for name in ("corp", "corp/*", "corp/a.txt", "corp"):
        corpus = str(tmp_path / name)
        assert prepare(DataConfig(corpus=corpus), BYTES, 4, quiet=True).meta.corpus == corpus
    assert len(list((cache_folder() / "tokens").glob("*/tokens"))) == 1


def test_a_learned_tokenizer_that_was_changed_is_learned_anew():
    first = prepare_corpus(corpus_of(b"some text " * 50), 0.1, BPE, 4, quiet=True)
    (file,) = cache_folder().glob("tokenizers/*/tokenizer/tokenizer.json")
    other = json.loads(file.read_text())
    other["model"]["vocab"].pop(other["model"]["merges"].pop().replace(" ", ""))
    other["added_tokens"][0]["id"] -= 1
    file.write_text(json.dumps(other))
    reopened = prepare_corpus(corpus_of(b"some text " * 50), 0.1, BPE, 4, quiet=True)
    assert reopened.tokenizer.digest == first.tokenizer.digest


def test_a_text_that_changes_while_it_is_read_is_refused_and_leaves_nothing():
    passes = []

    def read():
        passes.append(1)
        return iter([Document("a", [b"some text " * 20 + str(len(passes)).encode()])])

    with pytest.raises(UserError, match="changed while it was read"):
        prepare_corpus(Corpus("a", (read,)), 0.1, BYTES, 4, quiet=True)
    assert not list((cache_folder() / "tokens").rglob("*.bin"))


def test_a_text_that_changes_between_runs_is_prepared_anew(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("first text " * 20)
    first = prepare(DataConfig(corpus=str(path)), BYTES, 4, quiet=True)
    path.write_text("other text " * 20)
    second = prepare(DataConfig(corpus=str(path)), BYTES, 4, quiet=True)
    assert decoded(second, second.train)[0].startswith(b"other")
    assert decoded(first, first.train)[0].startswith(b"first")
    assert first.digest != second.digest


def test_a_tokenizer_is_learned_once_for_a_text(monkeypatch):
    first = prepare_corpus(corpus_of(b"some text " * 50), 0.1, BPE, 4, quiet=True)
    monkeypatch.setattr("gptmini.data.prepare.build_tokenizer", None)
    reopened = prepare_corpus(corpus_of(b"some text " * 50), 0.1, BPE, 4, quiet=True)
    given = prepare_corpus(corpus_of(b"some text " * 50), 0.1, first.tokenizer, 4, quiet=True)
    assert first.digest == reopened.digest == given.digest
    assert len(list((cache_folder() / "tokens").iterdir())) == 1


def test_tokens_without_digests_as_they_were_once_written_are_prepared_again():
    first = prepare_corpus(corpus_of(b"some text " * 50), 0.1, BYTES, 4, quiet=True)
    (folder,) = cache_folder().glob("tokens/*/tokens")
    (folder / "train.bin").write_bytes(bytes(2 * len(first.train)))  # which nothing could tell
    for name in ("SHA256SUMS", "train.sha256", "val.sha256"):
        (folder / name).unlink()
    reopened = prepare_corpus(corpus_of(b"some text " * 50), 0.1, BYTES, 4, quiet=True)
    assert reopened.train[:].tolist() == list(b"some text " * 45)


@pytest.mark.parametrize("damage", [lambda f: f.write_text("{"), lambda f: f.unlink()])
@pytest.mark.parametrize("name", ["tokenizers/*/tokenizer/tokenizer.json", "tokens/*/tokens/meta.json"])
def test_a_damaged_cache_is_made_anew(name, damage):
    first = prepare_corpus(corpus_of(b"some text " * 50), 0.1, BPE, 4, quiet=True)
    (file,) = cache_folder().glob(name)
    damage(file)
    reopened = prepare_corpus(corpus_of(b"some text " * 50), 0.1, BPE, 4, quiet=True)
    assert reopened.digest == first.digest
    assert reopened.train[:].tolist() == first.train[:].tolist()
    assert json.loads(file.read_text())


def outcome(function):
    """What a function returns, or the OSError that it raises."""
    try:
        return function()
    except OSError as error:
        return error


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ENOMEM])
def test_an_error_of_the_machine_never_removes_prepared_tokens(code, monkeypatch):
    def prepare_again():
        data = prepare_corpus(corpus_of(b"some text " * 50), 0.1, BPE, 4, quiet=True)
        return data.train[:].tolist()

    first = prepare_again()
    files = {path: path.stat().st_mtime_ns for path in cache_folder().rglob("*")}
    real = {(io, "open"): io.open, (os, "open"): os.open, (os, "pread"): os.pread}
    calls = 0  # of those functions on files of the cache

    def failing_at(n, function, path, *args, **keywords):
        nonlocal calls
        if function is real[os, "pread"] or str(path).startswith(str(cache_folder())):
            calls += 1
            if calls == n:
                raise OSError(code, os.strerror(code))
        return function(path, *args, **keywords)

    for n in itertools.count(1):
        calls = 0
        with monkeypatch.context() as patch:
            for (module, name), function in real.items():
                patch.setattr(module, name, partial(failing_at, n, function))
            result = outcome(prepare_again)
            if calls < n:  # no call was left to fail
                break
        assert (result.errno, type(result) is DamagedError) == (code, False)
        assert str(result.filename).startswith(str(cache_folder()))
        assert {path: path.stat().st_mtime_ns for path in cache_folder().rglob("*")} == files
    assert (result, n > 10) == (first, True)


def test_a_full_disk_leaves_nothing_half_and_names_the_folder(monkeypatch):
    def prepare_again():
        return prepare_corpus(corpus_of(b"some text " * 3000), 0.1, BPE, 4, quiet=True)

    real, calls = os.write, 0

    def failing_at(n, file, data):
        nonlocal calls
        calls += stat.S_ISREG(os.fstat(file).st_mode)  # no pipe
        if calls == n:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data)

    for n in itertools.count(1):
        calls = 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", partial(failing_at, n))
            result = outcome(prepare_again)
        if calls < n:
            break
        assert str(result.filename).startswith(str(cache_folder()))
        assert result.strerror.startswith("No space left on device: set GPTMINI_CACHE_DIR to a folder")
        assert {path.name for path in cache_folder().glob("*/*/*")} <= {"lock", "tokenizer"}
    assert n > 5
    assert prepare_again().train[:].tolist() == result.train[:].tolist()


@pytest.mark.skipif(os.name != "posix", reason="needs file permissions")
def test_a_cache_that_cannot_be_written_is_used_if_it_holds_the_tokens(monkeypatch, capsys):
    with tempfile.TemporaryDirectory() as name:  # which another user can reach, unlike tmp_path
        folder = Path(name)
        monkeypatch.setenv("GPTMINI_CACHE_DIR", str(folder / "cache"))
        (folder / "a.txt").write_text("some text " * 50)
        command = ["prepare", "--data.corpus", str(folder / "a.txt"), "--model.context-length", "4"]
        assert main(command) == 0
        written = capsys.readouterr().out
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        user = os.geteuid()
        if user == 0:  # for whom every folder can be written
            os.seteuid(65534)
        try:
            assert main(command) == 0
            assert capsys.readouterr() == (written, "")
            assert main([*command, "--data.val-fraction", "0.2"]) == 1
        finally:
            os.seteuid(user)
            for path in (folder, *folder.rglob("*")):
                path.chmod(0o755)
        message = rf"gptmini: {folder}/cache/tokenizers/\w+: Permission denied: set GPTMINI_CACHE_DIR to .*\n"
        assert re.fullmatch(message, capsys.readouterr().err)


SCRIPT = """
import sys
from gptmini.config import DataConfig, TokenizerConfig
from gptmini.data.prepare import prepare
data = prepare(DataConfig(corpus=sys.argv[1]), TokenizerConfig(kind="bpe", vocab_size=300), 4)
print(data.digest, data.meta.train_tokens, len(data.train))
"""


def start(path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def test_processes_that_prepare_the_same_text_at_once_get_the_same(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"line {i} of the text\n" for i in range(50_000)))
    processes = [start(tmp_path / "a.txt") for _ in range(4)]
    results = {process.communicate(timeout=100)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(results) == 1
    assert len(list((cache_folder() / "tokens").iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_preparation_leaves_nothing_that_counts(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"line {i} of the text\n" for i in range(300_000)))
    killed = start(tmp_path / "a.txt")
    while not list((cache_folder() / "tokens").glob("*/.gptmini-tmp-*/train.bin")):
        assert killed.poll() is None, "too fast for this test: make the text longer"
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not list((cache_folder() / "tokens").glob("*/tokens"))
    reopened = start(tmp_path / "a.txt")
    out, errors = reopened.communicate(timeout=100)
    assert (reopened.returncode, errors) == (0, "")
    assert out.split()[1] == out.split()[2]
    assert not list((cache_folder() / "tokens").glob("*/.gptmini-tmp-*"))
