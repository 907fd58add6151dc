"""A model and its tokenizer as one GGUF file, which llama.cpp, ollama and their like run.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) is written by the `gguf` package:
architecture gpt2, Linear weights as (out, in), biases always there, tokens spelled with GPT-2's characters.
"""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gptmini.atomic_io import NOT_WHOLE, new_file
from gptmini.checkpoint.gpt2_directory import only_finite
from gptmini.checkpoint.hf_gpt2 import to_gpt2
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import MissingPackageError, UserError
from gptmini.model import GPT

# Readers want at least one merge. Two zero bytes joined are no token, so this one changes nothing.
_NO_MERGE = ["\u0100 \u0100"]


def export_gguf(path: Path, model: GPT, tokenizer: Tokenizer, dtype: str) -> str:
    """Write the GGUF file; returns what was written, in words.

    `dtype` is float32, float16 or q8_0. Vectors and positions stay float32, as readers expect. q8_0 stores
    32 weights of a row as int8 with one float16 scale; rows that are no multiple of 32 long are float16.

    Raises UserError where there is a file already, the gguf package is missing, tokens and rows of
    the embedding differ in number, a weight is too large for `dtype`, or the tokenizer is not byte-level
    BPE: GGUF knows no other kind that splits text as ours do.
    DamagedError for weights that are NaN or infinite; OSError where the file cannot be written, or does not
    read back as it was written.
    """
    try:
        import gguf
    except ImportError:
        raise MissingPackageError("export to GGUF", "gguf") from None
    kinds = gguf.GGMLQuantizationType
    wanted = {"float32": kinds.F32, "float16": kinds.F16, "q8_0": kinds.Q8_0}.get(dtype)
    if wanted is None:
        raise UserError(f"--format gguf takes --dtype float32, float16 or q8_0, not {dtype}")
    if path.exists():
        raise UserError(f"{path}: exists already; choose another --output")
    config = model.config
    if tokenizer.kind == "chars":
        raise UserError(
            "the tokenizer has one token for each character, which GGUF cannot say: only models with "
            "tokenizer.kind = bpe, bytes or gpt2 can be exported"
        )
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the embedding {config.vocab_size} rows, "
            "but GGUF needs a row for each token: add rows (resize_token_embeddings of transformers), or "
            "take special tokens that have none out of tokenizer.json"
        )
    file_types = {kinds.F32: gguf.LlamaFileType.ALL_F32, kinds.F16: gguf.LlamaFileType.MOSTLY_F16}

    # the model's shape
    writer = gguf.GGUFWriter(None, "gpt2")
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

    # the tokenizer, as its tokenizer.json has it
    file = json.loads(tokenizer.files()["tokenizer.json"])
    special = {token["content"]: token["id"] for token in file["added_tokens"]}
    ids = dict(file["model"]["vocab"]) | special
    tokens = sorted(ids, key=ids.__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in file["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    )
    writer.add_token_merges(merges or _NO_MERGE)
    writer.add_add_bos_token(False)
    if tokenizer.end_of_text is not None:
        writer.add_bos_token_id(tokenizer.end_of_text)
        writer.add_eos_token_id(tokenizer.end_of_text)

    # the weights; biases that the model does not have are zeros
    gguf_names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    in_float16 = 0
    written = {}
    for gpt2_name, tensor in only_finite(to_gpt2(model.state_dict(), config).items(), "model"):
        name = gguf_names.get_name(gpt2_name, (".weight", ".bias"))
        assert name is not None, gpt2_name
        values = tensor.float().numpy()
        if ".h." in gpt2_name:
            values = values.T  # GPT-2's projections are (in, out), GGUF's (out, in); vectors stay
        kind = wanted if values.ndim == 2 and not name.startswith("position") else kinds.F32
        if kind == kinds.Q8_0 and values.shape[1] % 32:
            kind = kinds.F16
            in_float16 += 1
        written[name] = _quantize(gguf, gpt2_name, values, kind)
        writer.add_tensor(name, written[name], raw_dtype=kind)

    # The package writes by itself, and may lose the last bytes on a full disk: read back before it appears.
    with new_file(path) as draft:
        try:
            writer.write_header_to_file(draft)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        if not _reads_back(gguf, draft, writer.kv_data[0], written):
            raise OSError(errno.EIO, NOT_WHOLE)
    note = f" ({in_float16} tensors in float16: their rows are no multiple of 32)" if in_float16 else ""
    return f"{path}: {path.stat().st_size:,} bytes, {dtype}{note}"


def _quantize(gguf: ModuleType, name: str, values: np.ndarray, kind: Any) -> np.ndarray:
    """The values as the file holds them; UserError where one is too large for that."""
    with np.errstate(all="ignore"):  # looked for below
        quantized: np.ndarray = gguf.quants.quantize(values, kind)
        is_finite = np.isfinite(gguf.quants.dequantize(quantized, kind)).all()
    if not is_finite:
        raise UserError(
            f"tensor {name} holds a weight of {np.abs(values).max():.3g}, too large for {kind.name.lower()}: "
            "export with --dtype float32"
        )
    return quantized


def _reads_back(
    gguf: ModuleType, path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> bool:
    """Whether the file holds exactly this."""
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        found = {tensor.name: tensor.data for tensor in reader.tensors}
    except (ValueError, IndexError, UnicodeDecodeError):  # what a file that ends too early makes it raise
        return False

    values = {name: entry.value for name, entry in metadata.items()}
    values |= {name: np.float32(v).item() for name, v in values.items() if isinstance(v, float)}
    return (
        found.keys() == tensors.keys()
        and fields.items() >= values.items()
        and all(np.array_equal(found[name], tensor) for name, tensor in tensors.items())
    )
