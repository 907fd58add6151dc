"""GGUF files, read back with the gguf package, and by llama.cpp where a binding is installed."""

import errno
import os
import re
import signal
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch

import gptmini
from gptmini.checkpoint.gguf import export_gguf
from gptmini.checkpoint.gpt2_directory import save
from gptmini.checkpoint.store import load_model
from gptmini.cli.main import main
from gptmini.config import GPTConfig, TokenizerConfig
from gptmini.data.corpus import open_corpus
from gptmini.data.tokenizers import build_tokenizer
from gptmini.errors import DamagedError, UserError
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
    with pytest.raises(
        UserError, match="320 tokens and the embedding 257 rows, but GGUF needs a row for each"
    ):
        export_gguf(tmp_path / "n.gguf", make("bytes")[0], tokenizer, "float16")


@pytest.mark.parametrize("dtype", ["float32", "float16", "q8_0"])
def test_rows_that_pad_the_embedding_are_left_out_so_that_nothing_samples_them(make, tmp_path, dtype):
    model, tokenizer = make()
    padded = GPT(model.config.model_copy(update={"vocab_size": 384})).eval()
    weights = model.state_dict()
    for name in ("token_embedding.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], 9 * torch.ones(64, 64)])  # which any sampler would choose
    padded.load_state_dict(weights)
    export_gguf(tmp_path / "m.gguf", model, tokenizer, dtype)
    save(tmp_path / "padded", padded, tokenizer)
    export_gguf(tmp_path / "padded.gguf", *load_model(tmp_path / "padded"), dtype)
    plain, found = (values_of(gguf.GGUFReader(tmp_path / name)) for name in ("m.gguf", "padded.gguf"))
    assert all(np.array_equal(found[name], values) for name, values in plain.items())


@pytest.mark.parametrize(("dtype", "weight"), [("float16", 1e5), ("q8_0", 1e7)])
def test_a_weight_too_large_for_the_format_is_refused_naming_its_tensor(make, tmp_path, dtype, weight):
    model, tokenizer = make()
    model.blocks[1].mlp.c_fc.weight.data[3, 3] = weight
    with pytest.raises(
        UserError, match=r"h\.1\.mlp\.c_fc\.weight holds a weight of 1e\+0., too large"
    ) as refusal:
        export_gguf(tmp_path / "m.gguf", model, tokenizer, dtype)
    assert "--dtype float32" in str(refusal.value)
    export_gguf(tmp_path / "m.gguf", model, tokenizer, "float32")
    assert values_of(gguf.GGUFReader(tmp_path / "m.gguf"))["blk.1.ffn_up.weight"][3, 3] == weight


def test_weights_that_are_not_finite_are_damaged(make, tmp_path):
    model, tokenizer = make()
    for value in (float("nan"), float("inf")):
        model.ln_f.bias.data[0] = value
        with pytest.raises(DamagedError, match=r"ln_f\.bias holds NaN or infinite weights"):
            export_gguf(tmp_path / "m.gguf", model, tokenizer, "float32")


@pytest.mark.parametrize("lost", [1, 1000, 40_000, 150_000, 190_000])
def test_a_file_that_does_not_read_back_whole_never_appears(make, tmp_path, monkeypatch, lost):
    write = gguf.GGUFWriter.write_tensors_to_file

    def write_less(self):  # as on a full disk, where the last bytes get lost without an error
        write(self)
        self.flush()
        os.truncate(self.fout[0].name, os.path.getsize(self.fout[0].name) - lost)

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", write_less)
    with pytest.raises(OSError, match="was not written whole") as failure:
        export_gguf(tmp_path / "m.gguf", *make(), "float16")
    assert (failure.value.errno, failure.value.filename) == (errno.EIO, str(tmp_path / "m.gguf"))
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize("place", ["token", "metadata"])
def test_a_byte_that_changes_while_it_is_written_is_noticed(make, tmp_path, monkeypatch, place):
    write = gguf.GGUFWriter.close

    def close_and_change(self):
        path = self.fout and self.fout[0].name
        write(self)
        if path:
            with open(path, "r+b") as file:
                offset = (
                    re.search(
                        b"<.endoftext|gpt2.context_length.{4}"
                        if place == "token"
                        else b"gpt2\\.block_count....",
                        file.read(),
                        re.DOTALL,
                    ).end()
                    - 1
                )
                file.seek(offset)
                file.write(b"?")

    monkeypatch.setattr(gguf.GGUFWriter, "close", close_and_change)
    with pytest.raises(OSError, match="was not written whole"):
        export_gguf(tmp_path / "m.gguf", *make("bytes"), "float32")


EXPORT = "import sys; from gptmini.cli.main import main; sys.exit(main(sys.argv[1:]))"
LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); " + EXPORT
SLOW = """
import os, signal, sys
import gguf
from gptmini.cli.main import main
write = gguf.GGUFWriter.write_tensors_to_file
def killed(self):
    write(self)
    os.kill(os.getpid(), int(os.environ["SIGNAL"]))
gguf.GGUFWriter.write_tensors_to_file = killed
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")
@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_export_that_fails_leaves_nothing_that_the_next_one_does_not_remove(make, tmp_path, number):
    model, tokenizer = make()
    gptmini.save(tmp_path / "model", model, tokenizer)
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, "-c", LIMITED if number is None else SLOW, "export", str(tmp_path / "model")]
    command += ["--output", str(tmp_path / "m.gguf")]
    environment = os.environ | {"SIGNAL": str(int(number or 0))}
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    if number is None:
        assert (found.returncode, found.stderr) == (
            1,
            f"gptmini: {tmp_path}/m.gguf: was not written whole; is the disk full?\n",
        )
    elif number == signal.SIGINT:
        assert found.returncode == 130
    else:
        assert found.returncode == -number
    if number == signal.SIGKILL:
        assert len(sorted(tmp_path.iterdir())) == len(before) + 1
        export_gguf(tmp_path / "m.gguf", model, tokenizer, "float16")
        (tmp_path / "m.gguf").unlink()
    assert sorted(tmp_path.iterdir()) == before


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


@pytest.mark.filterwarnings("ignore")  # xllamacpp's
@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_a_llama_cpp_server_writes_the_same_greedy_text_also_without_the_padding(make, tmp_path, kind):
    xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    model, tokenizer = make(kind)
    rows = -(-tokenizer.vocab_size // 64) * 64
    padded = GPT(model.config.model_copy(update={"vocab_size": rows})).eval()
    weights = model.state_dict()
    for name in ("token_embedding.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], 9 * torch.ones(rows - tokenizer.vocab_size, 64)])
    padded.load_state_dict(weights)
    save(tmp_path / "padded", padded, tokenizer)
    export_gguf(tmp_path / "m.gguf", *load_model(tmp_path / "padded"), "float32")
    options = xllamacpp.CommonParams()
    options.model.path, options.n_ctx, options.warmup, options.n_parallel = (
        str(tmp_path / "m.gguf"),
        64,
        False,
        1,
    )
    server, compared = xllamacpp.Server(options), 0
    for prompt in ("It's sentence 12;", "née 7\n\n x", "<|endoftext|>It's"):
        ids = tokenizer.encode(prompt, parse_special=True)
        ours = generate(model, torch.tensor([ids]), max_new_tokens=20, temperature=0.0)[0].tolist()
        request = {"prompt": prompt, "n_predict": 20, "temperature": 0.0, "n_probs": 1, "ignore_eos": True}
        answer = server.handle_completions(request | {"stream": False, "cache_prompt": False})
        assert answer["usage"]["prompt_tokens"] == len(ids)
        found = b"".join(bytes(token["bytes"]) for token in answer["choices"][0]["logprobs"]["content"])
        expected = tokenizer.decode_bytes(ours[len(ids) :])
        # the server keeps back bytes that are no whole character yet
        assert expected.startswith(found)
        compared += len(found)
    assert compared > 5
