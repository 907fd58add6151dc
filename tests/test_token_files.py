import json

import numpy as np
import pytest
import torch
from test_prepare import prepared

from gptmini.config import TokenizerConfig
from gptmini.data.datasets import cache_folder
from gptmini.data.token_files import open_token_files
from gptmini.errors import DamagedError


def test_the_bytes_of_text_that_ids_stand_for_are_counted(tmp_path):
    data = prepared(tmp_path, "é€x" * 40, TokenizerConfig(kind="chars"))
    tokens = torch.tensor([data.tokenizer.encode("é€x"), data.tokenizer.encode("xxx")])
    assert data.tokenizer.count_bytes(tokens) == 2 + 3 + 1 + 3
    assert data.tokenizer.count_bytes(np.array(data.tokenizer.encode("x€"), dtype=np.uint16)) == 4


def test_the_files_of_a_folder_are_the_tokens_that_were_written(tmp_path):
    data = prepared(tmp_path, "some text " * 20)
    (folder,) = (cache_folder() / "tokens").glob("*/tokens")
    reopened = open_token_files(folder)
    assert reopened.digest == data.digest
    assert np.fromfile(folder / "train.bin", "<u2").tolist() == reopened.train.tolist()
    with pytest.raises(ValueError, match="read-only"):
        reopened.train[0] = 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_tokens": 7}, r"train\.bin: holds 360 bytes, not 7 tokens"),
        ({"tokenizer_digest": "0"}, r"holds another tokenizer than meta\.json says"),
        ({"vocab_size": 0}, r"meta\.json: Input should be greater than or equal to 1"),
        ({"format_version": 9}, r"meta\.json: Input should be 2"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path, change, message):
    prepared(tmp_path, "some text " * 20)
    (folder,) = (cache_folder() / "tokens").glob("*/tokens")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | change))
    with pytest.raises(DamagedError, match=message):
        open_token_files(folder)
