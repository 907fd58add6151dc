"""gptmini.evaluation.evaluate: the loss of a model over a text, whatever the model is wrapped in."""

import gzip
import json
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DataParallel, DistributedDataParallel

from gptmini.config import GPTConfig, RuntimeConfig
from gptmini.data.tokenizers import CharTokenizer
from gptmini.errors import DamagedError, UserError
from gptmini.evaluation.evaluate import evaluate
from gptmini.evaluation.window_losses import evaluate_windows
from gptmini.generation.precision import set_precision
from gptmini.model import GPT
from gptmini.training.runtime import start_runtime

TEXT = "né " * 40 + "an end"
TOKENIZER = CharTokenizer("né ade")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(GPTConfig(n_layer=2, n_head=2, n_embd=16, context_length=8, vocab_size=7, dropout=0.3)).eval()


def test_a_text_has_loss_perplexity_and_bits_per_byte(model):
    found = evaluate(model, TOKENIZER, TEXT)
    runtime = start_runtime(RuntimeConfig(device="cpu", precision="fp32"))
    expected = evaluate_windows(model, np.array(TOKENIZER.encode(TEXT)), TOKENIZER, 8, runtime).overall
    assert found.tokens == len(TEXT) - 1
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    nats = found.loss * found.tokens
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / (len(TEXT.encode()) - 1))


def test_a_path_is_a_file_and_a_str_is_text(model, tmp_path, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    expected = evaluate(model, TOKENIZER, TEXT)
    assert evaluate(model, TOKENIZER, path) == expected
    assert evaluate(model, TOKENIZER, type(path)("~/text.txt")) == expected
    with pytest.raises(UserError, match=r"no_such\.txt: cannot be read: No such file"):
        evaluate(model, TOKENIZER, tmp_path / "no_such.txt")
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"text.txt: not UTF-8 text at byte 0"):
        evaluate(model, TOKENIZER, path)
    # a file is read as a corpus is
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert evaluate(model, TOKENIZER, path) == expected
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert evaluate(model, TOKENIZER, tmp_path / "a.txt.gz") == expected
    (tmp_path / "a.jsonl").write_text(json.dumps({"story": TEXT}))
    assert evaluate(model, TOKENIZER, tmp_path / "a.jsonl", text_field="story") == expected


def test_dropout_is_off_and_every_submodule_keeps_its_mode(model):
    expected = evaluate(model, TOKENIZER, TEXT)
    model.train()
    model.blocks[0].eval()  # as one freezes a part in fine-tuning
    before = [module.training for module in model.modules()]
    assert evaluate(model, TOKENIZER, TEXT) == expected
    assert [module.training for module in model.modules()] == before


def test_a_wrapped_model_gives_the_same(model, tmp_path):
    expected = evaluate(model, TOKENIZER, TEXT)
    assert evaluate(DataParallel(model), TOKENIZER, TEXT) == expected
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        assert evaluate(DistributedDataParallel(model), TOKENIZER, TEXT) == expected
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("weights", "tolerance"), [("fp32", 1e-5), ("bf16", 0.01), ("int8", 0.02)])
def test_weights_of_other_formats_are_evaluated_as_they_are(model, weights, tolerance):
    expected = evaluate(model, TOKENIZER, TEXT).loss
    assert evaluate(set_precision(model, weights), TOKENIZER, TEXT).loss == pytest.approx(
        expected, abs=tolerance
    )


def test_what_cannot_be_evaluated_is_one_line(model):
    for text in ("", "a"):
        with pytest.raises(UserError, match=f"the text is {len(text)} tokens long, and evaluate needs two"):
            evaluate(model, TOKENIZER, text)
    with pytest.raises(UserError, match=r"takes a text \(str\) or a file \(pathlib.Path\), not list"):
        evaluate(model, TOKENIZER, [1, 2, 3])
    for batch_size in (0, -1, 2.5, "8"):
        with pytest.raises(UserError, match="batch_size"):
            evaluate(model, TOKENIZER, TEXT, batch_size=batch_size)
    with pytest.raises(UserError, match="tokenizer = None was given"):
        evaluate(model, None, TEXT)
    with pytest.raises(UserError, match="token id 8, but the model's vocab_size is 7"):
        evaluate(model, CharTokenizer("abcdefghi"), "hihi")
    assert evaluate(model, CharTokenizer("abcdefghi"), "dada").tokens == 3  # what it reads, it evaluates
    with torch.no_grad():
        model.blocks[0].ln_1.weight[3] = math.nan
    with pytest.raises(DamagedError, match="model: the loss is nan, as its weights are not finite"):
        evaluate(model, TOKENIZER, TEXT)
