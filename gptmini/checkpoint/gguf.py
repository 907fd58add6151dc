"""A model and its tokenizer as one GGUF file, which llama.cpp, ollama and their like run.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) is written by the `gguf` package:
architecture gpt2, Linear weights as (out, in), biases always there, tokens spelled with GPT-2's characters.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from gptmini.atomic_io import write_file
from gptmini.checkpoint.hf_gpt2 import parameter_shapes
from gptmini.config import GPTConfig
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import UserError
from gptmini.model import GPT

NumberFormat = Literal["float32", "float16", "q8_0"]

_NAMES = {
    "token_embedding": "token_embd",
    "position_embedding": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_NO_MERGE = [
    "\u0100 \u0100"
]  # readers want one; two zero bytes joined are no token, so they come apart again


def export_gguf(path: Path, model: GPT, tokenizer: Tokenizer, number_format: NumberFormat) -> str:
    """Write the GGUF file; returns what was written, in words.

    Vectors and positions stay float32, as readers expect. q8_0 stores 32 weights of a row as int8 with one
    float16 scale; where a row is no multiple of 32 long, float16 is used. Raises UserError where there is a
    file already, the gguf package is missing, or the tokenizer is not byte pairs: GGUF knows no other kind
    that splits text as ours do.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("the package gguf is not installed: pip install gguf") from None
    if path.exists():
        raise UserError(f"{path}: exists already; choose another --output")
    if tokenizer.kind == "chars":
        raise UserError(
            "the tokenizer has one token for each character, which GGUF cannot say: only models with "
            "tokenizer.kind = bpe, bytes or gpt2 can be exported"
        )
    kinds = gguf.GGMLQuantizationType
    wanted = {"float32": kinds.F32, "float16": kinds.F16, "q8_0": kinds.Q8_0}[number_format]
    file_types = {kinds.F32: gguf.LlamaFileType.ALL_F32, kinds.F16: gguf.LlamaFileType.MOSTLY_F16}

    writer = gguf.GGUFWriter(None, "gpt2")
    config = model.config
    writer.add_name(path.stem)
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(file_types.get(wanted, gguf.LlamaFileType.MOSTLY_Q8_0))
    if wanted == kinds.Q8_0:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    tokens, special_tokens, merges = _spelled(tokenizer, config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in special_tokens else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges(merges or _NO_MERGE)
    writer.add_add_bos_token(False)
    if tokenizer.end_of_text is not None:
        writer.add_bos_token_id(tokenizer.end_of_text)
        writer.add_eos_token_id(tokenizer.end_of_text)

    rounded = set()
    for name, values in _tensors(model, config):
        kind = wanted if values.ndim == 2 and not name.startswith("position") else kinds.F32
        if kind == kinds.Q8_0 and values.shape[1] % 32:
            kind = kinds.F16
            rounded.add(name)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.gguf"
        writer.write_header_to_file(draft)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_file(path, _pieces(draft))
    note = f" ({len(rounded)} tensors in float16: their rows are no multiple of 32)" if rounded else ""
    return f"{path}: {path.stat().st_size:,} bytes, {number_format}{note}"


def _spelled(tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], set[str], list[str]]:
    """Every token as GPT-2 spells it, the special ones, and the merges."""
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {vocab_size}: they do not belong "
            "together"
        )
    file = json.loads(tokenizer.files()["tokenizer.json"])
    ids = dict(file["model"]["vocab"]) | {token["content"]: token["id"] for token in file["added_tokens"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in file["model"]["merges"]]
    return sorted(ids, key=ids.__getitem__), {t["content"] for t in file["added_tokens"]}, merges


def _tensors(model: GPT, config: GPTConfig) -> Iterator[tuple[str, np.ndarray]]:
    """The parameters under GGUF's names, float32; biases that the model does not have are zeros."""
    state = model.state_dict()
    for name, shape in parameter_shapes(config).items():
        values = state[name].float().numpy() if name in state else np.zeros(shape, dtype=np.float32)
        block, _, part = name.removeprefix("blocks.").partition(".")
        if not name.startswith("blocks."):
            part, block = name, ""
        stem, _, what = part.rpartition(".")
        yield f"{f'blk.{block}.' if block else ''}{_NAMES[stem]}.{what}", values


def _pieces(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            yield piece
