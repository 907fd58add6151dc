import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from test_prepare import prepared

from gptmini.cli.main import main
from gptmini.config import TokenizerConfig
from gptmini.data.batching import WindowSampler, validation_batches
from gptmini.data.datasets import cache_folder
from gptmini.data.prepare import prepare
from gptmini.data.token_files import create_sums, open_token_files
from gptmini.errors import DamagedError


def test_the_bytes_of_text_that_ids_stand_for_are_counted(tmp_path):
    data = prepared(tmp_path, "é€x" * 40, TokenizerConfig(kind="chars"))
    tokens = torch.tensor([data.tokenizer.encode("é€x"), data.tokenizer.encode("xxx")])
    assert data.tokenizer.count_bytes(tokens) == 2 + 3 + 1 + 3
    assert data.tokenizer.count_bytes(np.array(data.tokenizer.encode("x€"), dtype=np.uint16)) == 4


def tokens_folder() -> Path:
    (folder,) = (cache_folder() / "tokens").glob("*/tokens")
    return folder


def test_the_files_of_a_folder_are_the_tokens_that_were_written(tmp_path):
    data = prepared(tmp_path, "some text " * 2000)
    folder = tokens_folder()
    reopened = open_token_files(folder)
    assert reopened.digest == data.digest
    whole = np.fromfile(folder / "train.bin", "<u2")
    assert len(whole) == len(reopened.train) == 18_000
    for window in (slice(None), slice(2047, 2049), slice(-5, None), slice(17_990, 99_999), slice(7, 7)):
        assert reopened.train[window].tolist() == whole[window].tolist()
    with pytest.raises(ValueError, match="read-only"):
        reopened.train[:1][0] = 0


def test_every_flipped_byte_of_prepared_tokens_is_found(tmp_path, long):
    data = prepared(tmp_path, "some text " * 20)
    folder, count = tokens_folder(), 0
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for i in range(0, len(content), 1 if long else 17):
            path.write_bytes(content[:i] + bytes([content[i] ^ 4]) + content[i + 1 :])
            with pytest.raises(DamagedError, match=rf"^{folder}\S*: damaged: "):
                open_token_files(folder)
            count += 1
        path.write_bytes(content)
    assert open_token_files(folder).digest == data.digest
    print(f"flipped bytes of prepared tokens: {count:,}")


def test_damage_is_found_by_a_reader_of_the_block_and_named(tmp_path):
    data = prepared(tmp_path, "some text " * 2000)
    folder = tokens_folder()
    with open(folder / "train.bin", "r+b") as file:
        file.seek(5000)
        file.write(b"\1")
    sampler = WindowSampler(data.train, 16, seed=0)
    sampler.batch(np.array([0, 2000]))
    message = r"train\.bin: damaged: block 1, from byte 4,096 on, is not what was written"
    with pytest.raises(DamagedError, match=f"{message}: the next command prepares the text again"):
        sampler.batch(np.array([0, 2047]))
    with pytest.raises(DamagedError, match=message):
        open_token_files(folder)


def test_a_file_that_is_cut_short_while_it_is_read_is_an_error_and_no_signal(tmp_path):
    data = prepared(tmp_path, "some text " * 2000)
    os.truncate(tokens_folder() / "val.bin", 100)
    with pytest.raises(DamagedError, match=r"val\.bin: damaged: block 0"):
        list(validation_batches(data.val, 16, 4))


def test_a_run_whose_tokens_are_damaged_ends_with_one_line(tmp_path, monkeypatch, capsys):
    def prepare_and_damage(*args, **keywords):
        data = prepare(*args, **keywords)
        os.truncate(tokens_folder() / "train.bin", 10)
        return data

    (tmp_path / "a.txt").write_text("some text " * 50)
    model = [
        "--model.n-layer",
        "1",
        "--model.n-head",
        "1",
        "--model.n-embd",
        "4",
        "--model.context-length",
        "4",
    ]
    (tmp_path / "a.yaml").write_text(f"data: {{corpus: {tmp_path}/a.txt}}\ntokenizer: {{kind: bytes}}\n")
    args = [
        "train",
        str(tmp_path / "a.yaml"),
        *model,
        "--train.max-steps",
        "3",
        "--train.out-dir",
        str(tmp_path / "run"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr("gptmini.training.initialize.prepare", prepare_and_damage)
        assert main([*args, "--quiet"]) == 4
    message = r"gptmini: .*/train\.bin: damaged: block 0, .*: the next command prepares the text again\n"
    assert re.fullmatch(message, capsys.readouterr().err)
    assert main([*args, "--resume"]) == 0
    assert re.search(
        r"/train\.bin: holds 10 bytes, not \d+ tokens: .* is made again\n", capsys.readouterr().err
    )


def test_a_folder_that_is_whole_but_not_of_this_version_is_refused(tmp_path):
    prepared(tmp_path, "some text " * 20)
    folder = tokens_folder()
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"format_version": 9}))
    (folder / "SHA256SUMS").unlink()
    create_sums(folder)
    with pytest.raises(DamagedError, match=r"/tokens: damaged: meta.json: format_version = 9: needs 2$"):
        open_token_files(folder)
    (folder / "train.bin").write_bytes(b"x")
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "SHA256SUMS").unlink()
    create_sums(folder)
    with pytest.raises(DamagedError, match=r"train\.bin: holds 1 bytes, not 180 tokens"):
        open_token_files(folder)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_digests_can_be_checked_without_gptmini(tmp_path):
    prepared(tmp_path, "some text " * 20)
    folder = tokens_folder()
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
