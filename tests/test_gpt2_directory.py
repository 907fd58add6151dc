"""`save`, and hostile or unusual weights in a GPT-2 directory; transformers is the oracle."""

import copy
import errno
import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptmini import atomic_io
from gptmini.checkpoint.gpt2_directory import save
from gptmini.checkpoint.store import load_model
from gptmini.cli.main import main
from gptmini.config import GPTConfig
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import DamagedError, UserError
from gptmini.model import GPT

TOKENIZER = Tokenizer.train("", "bytes")
CONFIG = GPTConfig(vocab_size=257, n_layer=2, n_head=2, n_embd=8, context_length=6)
TOKENS = torch.tensor([[1, 2, 3, 4], [256, 0, 0, 7]])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(CONFIG).eval()


def assert_same_weights(path, model):
    loaded, _ = load_model(path)
    for (name, ours), (name_too, theirs) in zip(
        loaded.named_parameters(), model.named_parameters(), strict=True
    ):
        assert name == name_too
        assert torch.equal(ours, theirs.float()), name


def test_a_saved_model_loads_here_and_in_transformers(model, tmp_path):
    save(tmp_path / "new" / "model", model, TOKENIZER)
    assert_same_weights(tmp_path / "new" / "model", model)
    assert load_model(tmp_path / "new" / "model")[1].digest == TOKENIZER.digest
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "model").eval()
    with torch.inference_mode():
        assert (model(TOKENS) - theirs(TOKENS).logits).abs().max() < 1e-4
    assert AutoTokenizer.from_pretrained(tmp_path / "new" / "model")("To be")[
        "input_ids"
    ] == TOKENIZER.encode("To be")


@pytest.mark.parametrize(
    ("bos", "start"),
    [(98, 98), (256, 256), (50256, 256), (None, 256), (-1, 256), ([98], 256), (True, 256), ("a", 256)],
)
def test_the_token_that_texts_start_from_is_read_where_transformers_reads_it(model, tmp_path, bos, start):
    tokenizer = Tokenizer.train("", "bytes")
    tokenizer.first_token = 98
    save(tmp_path / "model", model, tokenizer)
    twin = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert twin.generate(max_new_tokens=3, do_sample=False)[0, 0] == 98
    file = tmp_path / "model" / "generation_config.json"
    file.write_text(json.dumps({"bos_token_id": bos}), encoding="utf-8")
    assert load_model(tmp_path / "model")[1].start_token == start


def test_a_path_may_be_text_and_begin_with_the_home_folder(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    save("~/model", model)
    assert_same_weights("~/model", model)
    assert load_model("~/model")[1] is None


def wrapped(model):
    """The ways in which a model stays the same and its type does not."""
    compiled = copy.deepcopy(model)
    compiled.compile(backend="eager")  # in place
    parts = copy.deepcopy(model)
    parts.blocks[0] = torch.compile(parts.blocks[0], backend="eager")
    return {
        "DataParallel": DataParallel(copy.deepcopy(model)),
        "torch.compile": torch.compile(copy.deepcopy(model), backend="eager"),
        "both": DataParallel(torch.compile(copy.deepcopy(model), backend="eager")),
        "model.compile": compiled,
        "a compiled block": parts,
        "float16": copy.deepcopy(model).half(),
        "frozen and in training": copy.deepcopy(model).requires_grad_(False).train(),
    }


def test_a_model_that_is_wrapped_compiled_or_half_is_saved_as_itself(model, tmp_path):
    for name, other in wrapped(model).items():
        save(tmp_path / name, other)
        assert {t.dtype for t in load_file(tmp_path / name / "model.safetensors").values()} == {torch.float32}
        assert_same_weights(tmp_path / name, copy.deepcopy(other).float() if name == "float16" else model)


@pytest.fixture
def process_group():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_model_in_ddp_is_saved_as_itself(model, tmp_path, process_group):
    save(tmp_path / "ddp", nn.parallel.DistributedDataParallel(model))
    assert_same_weights(tmp_path / "ddp", model)


def test_a_model_sharded_over_ranks_is_refused(model, tmp_path, process_group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(UserError, match="the model is sharded over ranks"):
        save(tmp_path / "sharded", model)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_biases_comes_back_without(tmp_path):
    model = GPT(CONFIG.model_copy(update={"bias": False}))
    save(tmp_path / "model", model)
    assert_same_weights(tmp_path / "model", model)


class Rounded(nn.Module):
    """A linear layer whose weight is no parameter any more."""


def test_what_cannot_be_saved_is_one_line_and_writes_nothing(model, tmp_path):
    (tmp_path / "taken").symlink_to("nowhere")
    rounded, untied = copy.deepcopy(model), copy.deepcopy(model)
    rounded.blocks[1].mlp.c_fc = Rounded()
    untied.lm_head.weight = nn.Parameter(torch.zeros(257, 8))
    small = GPT(CONFIG.model_copy(update={"vocab_size": 100}))
    for path, refused, tokenizer, message in [
        ("taken", model, None, "taken: exists already; choose another folder"),
        ("new", nn.Linear(2, 2), None, "model is a Linear, but must be a gptmini.GPT"),
        ("new", rounded, None, "rounded for generating: load it with precision fp32"),
        ("new", untied, None, "parameter lm_head.weight has no place in GPT-2"),
        ("new", small, TOKENIZER, "the tokenizer has 257 tokens, but the model's embedding only 100"),
    ]:
        with pytest.raises(UserError, match=message) as refusal:
            save(tmp_path / path, refused, tokenizer)
        assert "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_save_that_fails_leaves_nothing(model, tmp_path, monkeypatch):
    create_file = atomic_io.create_file

    def full_at_the_weights(path, data):
        if path.name == "model.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        create_file(path, data)

    monkeypatch.setattr(atomic_io, "create_file", full_at_the_weights)
    with pytest.raises(OSError, match="No space left on device"):
        save(tmp_path / "model", model)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tensor_file(model, tmp_path):
    """Change the header of a saved model's weights; returns its folder."""
    save(tmp_path / "model", model)
    path = tmp_path / "model" / "model.safetensors"
    original = path.read_bytes()
    length = struct.unpack("<Q", original[:8])[0]

    def change(edit, data=b""):
        header = json.loads(original[8 : 8 + length])
        text = edit(header)
        text = text if isinstance(text, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + original[8 + length :] + data)
        return tmp_path / "model"

    return change


LN = "transformer.ln_f.bias"
END = 4 * sum(p.numel() for p in GPT(CONFIG).parameters())


def test_safetensors_that_no_model_has_are_refused_by_name_shape_or_dtype(tensor_file):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [END, END]}
    for edit, message in [
        (lambda h: h.update({"x": empty}), "tensor x has no place in this GPT-2"),
        (lambda h: h.update({"a\n\x1b[2J": empty}), r"tensor 'a\\n\\x1b\[2J' has no place"),
        (
            lambda h: h[LN].update(shape=[1, 8]),
            r"ln_f\.bias has shape \(1, 8\), but config\.json needs \(8,\)",
        ),
        (lambda h: h[LN].update(dtype="I32"), r"ln_f\.bias is torch\.int32: float64, float32"),
        (lambda h: h[LN].update(dtype="F8_E4M3", shape=[32]), r"is torch\.float8_e4m3fn: float64, float32"),
        (lambda h: h[LN].update(dtype="F31"), "not a safetensors file"),
        (lambda h: h[LN].update(shape=[9]), "not a safetensors file"),
        (lambda h: h.pop(LN) and None, "not a safetensors file"),  # its bytes are left without a name
    ]:
        folder = tensor_file(edit)
        with pytest.raises((UserError, DamagedError), match=message) as refusal:
            load_model(folder)
        assert str(refusal.value).isprintable()


def test_unknown_keys_of_a_header_are_passed_over_and_the_last_of_a_repeated_name_counts(tensor_file, model):
    folder = tensor_file(lambda header: header[LN].update(url="http://example.org"))
    assert_same_weights(folder, model)
    first = b'{"%b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, ' % LN.encode()
    folder = tensor_file(lambda header: json.dumps(header).encode().replace(b"{", first, 1))
    assert_same_weights(folder, model)


def test_a_header_of_more_than_100_mb_is_refused(tensor_file):
    folder = tensor_file(lambda header: json.dumps(header).encode() + b" " * 100_000_001)
    with pytest.raises(DamagedError, match=r"model\.safetensors: not a safetensors file: header too large"):
        load_model(folder)


def test_loaded_weights_do_not_change_with_their_file(model, tmp_path):
    save(tmp_path / "model", model)
    loaded, _ = load_model(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.write(bytes(size))
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))


def test_weights_that_are_not_finite_are_damaged_to_every_reader_and_never_saved(
    tensor_file, model, tmp_path, capsys
):
    bias = torch.full((8,), torch.nan)
    bias[1:] = 0
    folder = tensor_file(lambda header: None)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[LN] = bias
    save_file(tensors, path, metadata={"format": "pt"})
    for command in ("evaluate", "generate", "export"):
        assert main([command, str(folder), *(["--corpus", __file__] if command == "evaluate" else [])]) == 4
        assert "parameter ln_f.bias holds NaN or infinite weights" in capsys.readouterr().err
    model.ln_f.bias.data[0] = torch.inf
    with pytest.raises(UserError, match=r"parameter ln_f\.bias holds NaN or infinite weights"):
        save(tmp_path / "infinite", model)


def test_a_file_of_float64_weights_is_read_as_float32(tensor_file, model):
    folder = tensor_file(lambda header: None)
    tensors = {name: t.double() for name, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same_weights(folder, model)
