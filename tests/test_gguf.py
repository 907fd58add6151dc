"""GGUF files, read back with the gguf package, and by llama.cpp where its binding is installed."""

import gguf
import numpy as np
import pytest
import torch

from gptmini.checkpoint.gguf import export_gguf
from gptmini.cli.main import main
from gptmini.config import GPTConfig, TokenizerConfig
from gptmini.data.corpus import open_corpus
from gptmini.data.tokenizers import build_tokenizer
from gptmini.errors import UserError
from gptmini.generation.generate import generate
from gptmini.model import GPT

TEXT = "".join(f"It's sentence {i}; it says: {i} times {i} is {i * i}, née Größe.\n" for i in range(200))


@pytest.fixture
def make(tmp_path):
    def make(kind="bpe", bias=True, n_embd=64):
        (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
        size = {"vocab_size": 320} if kind == "bpe" else {}
        tokenizer = build_tokenizer(
            TokenizerConfig(kind=kind, **size), open_corpus(str(tmp_path / "text.txt"))
        )
        torch.manual_seed(0)
        sizes = {"n_layer": 2, "n_head": 2, "n_embd": n_embd, "context_length": 64, "bias": bias}
        model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **sizes)).eval()
        for parameter in model.parameters():  # biases and LayerNorms that differ from their first values
            parameter.data += 0.1 * torch.randn_like(parameter)
        return model, tokenizer

    return make


def values_of(reader):
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}


def expected_values(model):
    names = {
        "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    }  # fmt: skip
    found = {
        "token_embd.weight": model.token_embedding.weight,
        "position_embd.weight": model.position_embedding.weight,
        "output_norm.weight": model.ln_f.weight,
        "output_norm.bias": model.ln_f.bias,
    }
    for i, block in enumerate(model.blocks):
        for ours, theirs in names.items():
            module = block.get_submodule(ours)
            found |= {f"blk.{i}.{theirs}.weight": module.weight, f"blk.{i}.{theirs}.bias": module.bias}
    return {name: None if tensor is None else tensor.detach().numpy() for name, tensor in found.items()}


@pytest.mark.parametrize(
    ("dtype", "kind", "error"),
    [("float32", "F32", 0.0), ("float16", "F16", 5e-4), ("q8_0", "Q8_0", 1 / 127)],
)
def test_the_gguf_package_reads_the_same_weights_back(make, tmp_path, dtype, kind, error):
    model, tokenizer = make()
    export_gguf(tmp_path / "m.gguf", model, tokenizer, dtype)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    found, expected = values_of(reader), expected_values(model)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() <= error * np.abs(values).max(), name
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert {kinds[name] for name, values in expected.items() if values.ndim == 1} == {"F32"}
    assert kinds["token_embd.weight"] == kinds["blk.1.ffn_down.weight"] == kind
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "gpt2"
    assert fields["gpt2.context_length"] == 64
    assert fields["gpt2.attention.head_count"] == 2
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.end_of_text
    assert len(fields["tokenizer.ggml.tokens"]) == tokenizer.vocab_size
    assert fields["tokenizer.ggml.tokens"][-1] == "<|endoftext|>"
    assert fields["tokenizer.ggml.token_type"][-2:] == [1, 3]
    assert len(fields["tokenizer.ggml.merges"]) == tokenizer.vocab_size - 257


def test_a_model_without_biases_gets_zeros_and_short_rows_are_float16(make, tmp_path):
    model, tokenizer = make("bytes", bias=False, n_embd=48)
    line = export_gguf(tmp_path / "m.gguf", model, tokenizer, "q8_0")
    found = values_of(gguf.GGUFReader(tmp_path / "m.gguf"))
    assert not found["blk.0.attn_qkv.bias"].any()
    assert "in float16: their rows are no multiple of 32" in line


def test_what_cannot_be_exported_is_one_line(make, tmp_path):
    model, tokenizer = make("chars")
    with pytest.raises(UserError, match="one token for each character, which GGUF cannot say"):
        export_gguf(tmp_path / "m.gguf", model, tokenizer, "float16")
    model, tokenizer = make()
    (tmp_path / "m.gguf").write_bytes(b"")
    with pytest.raises(UserError, match=r"m\.gguf: exists already"):
        export_gguf(tmp_path / "m.gguf", model, tokenizer, "float16")
    with pytest.raises(UserError, match="320 tokens and the model 257: they do not belong together"):
        export_gguf(tmp_path / "n.gguf", make("bytes")[0], tokenizer, "float16")


def test_the_command_exports_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    args = "train --data.corpus text.txt --tokenizer.kind bytes --model.n-layer 1 --model.n-head 1 --quiet"
    args += " --model.n-embd 32 --model.context-length 16 --train.max-steps 1 --train.batch-size 2"
    assert main([*args.split(), "--train.out-dir", "run"]) == 0
    assert main(["export", "run", "--format", "gguf", "--numbers", "q8_0"]) == 0
    assert capsys.readouterr().out.startswith("run-q8_0.gguf: ")
    assert gguf.GGUFReader(tmp_path / "run-q8_0.gguf").tensors


@pytest.mark.filterwarnings("ignore")  # llama_cpp's
@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_llama_cpp_reads_the_same_tokens_and_writes_the_same_greedy_ones(make, tmp_path, kind):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model, tokenizer = make(kind)
    export_gguf(tmp_path / "m.gguf", model, tokenizer, "float32")
    llama = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=64, n_threads=1, verbose=False, logits_all=True)
    prompt = "It's sentence 12;  née 7\n\n x"
    ids = tokenizer.encode(prompt)[:20]
    assert llama.tokenize(prompt.encode(), add_bos=False)[:20] == ids
    ours = generate(model, torch.tensor([ids]), max_new_tokens=30, temperature=0.0)[0].tolist()
    theirs = list(ids)
    for token in llama.generate(ids, temp=0.0, repeat_penalty=1.0):
        theirs.append(token)
        if len(theirs) == len(ours):
            break
    assert theirs == ours
