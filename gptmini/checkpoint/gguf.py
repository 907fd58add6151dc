"""A model and its tokenizer as one GGUF file, which llama.cpp, ollama and their like run.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) is written by the `gguf` package:
architecture gpt2, Linear weights as (out, in), biases always there, tokens spelled with GPT-2's characters.
"""

import json
import tempfile
from pathlib import Path
from typing import Literal

from gptmini.atomic_io import write_file
from gptmini.checkpoint.hf_gpt2 import to_gpt2
from gptmini.data.tokenizers import Tokenizer
from gptmini.errors import MissingPackageError, UserError
from gptmini.model import GPT

# Readers want at least one merge. Two zero bytes joined are no token, so this one changes nothing.
_NO_MERGE = ["\u0100 \u0100"]


def export_gguf(
    path: Path, model: GPT, tokenizer: Tokenizer, dtype: Literal["float32", "float16", "q8_0"]
) -> str:
    """Write the GGUF file; returns what was written, in words.

    Vectors and positions stay float32, as readers expect. q8_0 stores 32 weights of a row as int8 with one
    float16 scale; where a row is no multiple of 32 long, float16 is used. Raises UserError where there is a
    file already, the gguf package is missing, or the tokenizer is not byte-level BPE: GGUF knows no other
    kind that splits text as ours do.
    """
    try:
        import gguf
    except ImportError:
        raise MissingPackageError("export to GGUF", "gguf") from None
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
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {config.vocab_size}: they do not "
            "belong together"
        )
    kinds = gguf.GGMLQuantizationType
    wanted = {"float32": kinds.F32, "float16": kinds.F16, "q8_0": kinds.Q8_0}[dtype]
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
    for gpt2_name, tensor in to_gpt2(model.state_dict(), config).items():
        name = gguf_names.get_name(gpt2_name, (".weight", ".bias"))
        assert name is not None, gpt2_name
        values = tensor.float().numpy()
        if ".h." in gpt2_name:
            values = values.T  # GPT-2's projections are (in, out), GGUF's (out, in); vectors stay
        kind = wanted if values.ndim == 2 and not name.startswith("position") else kinds.F32
        if kind == kinds.Q8_0 and values.shape[1] % 32:
            kind = kinds.F16
            in_float16 += 1
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    # The package writes a file by itself: into a temporary one, which then appears at `path` whole.
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.gguf"
        writer.write_header_to_file(draft)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with open(draft, "rb") as content:
            write_file(path, iter(lambda: content.read(2**20), b""))
    note = f" ({in_float16} tensors in float16: their rows are no multiple of 32)" if in_float16 else ""
    return f"{path}: {path.stat().st_size:,} bytes, {dtype}{note}"
