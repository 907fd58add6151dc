"""Other programs that generate with GPT-2 on a CPU, given our weights: transformers, ctranslate2, llama.cpp.

Each is built once and called with the prompts (B, T) and how many tokens to add; all decode greedily.
"""

from collections.abc import Callable, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from gptmini.checkpoint.gguf import export_gguf
from gptmini.checkpoint.hf_gpt2 import to_gpt2
from gptmini.data.tokenizers.byte_pair import BYTES, BytePairTokenizer
from gptmini.model import GPT

Decoder = Callable[[Tensor, int], object]


def transformers_decoder(model: GPT, dtype: torch.dtype) -> Decoder:
    """transformers' GPT-2 with the same weights."""
    c = model.config
    shape = {"vocab_size": c.vocab_size, "n_positions": c.context_length, "n_embd": c.n_embd}
    twin = GPT2LMHeadModel(GPT2Config(**shape, n_layer=c.n_layer, n_head=c.n_head, eos_token_id=None))
    twin.load_state_dict(to_gpt2(model.state_dict(), c), strict=False)
    twin = twin.eval().to(dtype)

    @torch.inference_mode()
    def decode(tokens: Tensor, n: int) -> object:
        options = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(tokens)}
        return twin.generate(tokens, max_new_tokens=n, **options)

    return decode


def ctranslate2_decoders(model: GPT, folder: Path, kinds: Sequence[str]) -> dict[str, Decoder]:
    """ctranslate2's generator for each compute type, converted without a tokenizer: token i is called "i"."""
    import ctranslate2
    from ctranslate2.specs import TransformerDecoderModelSpec
    from ctranslate2.specs.common_spec import Activation

    def copy(spec: Any, layer: nn.Module, weight: str = "weight", bias: str = "bias") -> None:
        setattr(spec, weight, layer.weight.detach().numpy())
        if layer.bias is not None:
            setattr(spec, bias, layer.bias.detach().numpy())

    c = model.config
    spec = TransformerDecoderModelSpec.from_config(c.n_layer, c.n_head, activation=Activation.GELUTanh)
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = model.token_embedding.weight.detach().numpy()
    decoder.position_encodings.encodings = model.position_embedding.weight.detach().numpy()
    copy(decoder.layer_norm, model.ln_f, "gamma", "beta")
    copy(decoder.projection, model.lm_head)
    for layer, block in zip(decoder.layer, model.blocks, strict=True):
        copy(layer.self_attention.layer_norm, block.ln_1, "gamma", "beta")
        copy(layer.self_attention.linear[0], block.attn.c_attn)
        copy(layer.self_attention.linear[1], block.attn.c_proj)
        copy(layer.ffn.layer_norm, block.ln_2, "gamma", "beta")
        copy(layer.ffn.linear_0, block.mlp.c_fc)
        copy(layer.ffn.linear_1, block.mlp.c_proj)
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
    spec.register_vocabulary([str(i) for i in range(c.vocab_size)])
    spec.validate()
    spec.optimize()
    folder.mkdir()
    spec.save(str(folder))

    def build(kind: str) -> Decoder:
        threads = torch.get_num_threads()
        generator = ctranslate2.Generator(str(folder), compute_type=kind, intra_threads=threads)

        def decode(tokens: Tensor, n: int) -> object:
            prompts = [[str(token) for token in row] for row in tokens.tolist()]
            # sampling_topk=1: the likeliest token; no end token, so that each text has n
            options = {"max_length": n, "sampling_topk": 1, "include_prompt_in_result": False}
            return generator.generate_batch(prompts, end_token=[], **options)

        return decode

    return {kind: build(kind) for kind in kinds}


def llama_cpp_decoder(model: GPT, path: Path, dtype: str, batch: int) -> Decoder:
    """llama.cpp, by the wheel xllamacpp, from our own GGUF file, with room for `batch` texts at once."""
    import xllamacpp

    # GGUF needs a tokenizer of the model's size; the prompts are ids, so any will do.
    merges = list(islice(product(BYTES, BYTES), model.config.vocab_size - 257))
    tokens = [*BYTES, *(a + b for a, b in merges), b""]
    export_gguf(path, model, BytePairTokenizer(tokens, merges, {"<|endoftext|>": len(tokens) - 1}), dtype)
    options = xllamacpp.CommonParams()
    options.model.path, options.verbosity, options.warmup = str(path), 0, False
    options.n_parallel, options.n_ctx = batch, batch * model.config.context_length
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = torch.get_num_threads()
    server = xllamacpp.Server(options)

    def decode(tokens: Tensor, n: int) -> object:
        request = {"prompt": tokens.tolist(), "n_predict": n, "temperature": 0.0, "ignore_eos": True}
        answer = server.handle_completions(request | {"stream": False, "cache_prompt": False})
        found = len(answer["choices"]), answer["usage"]["completion_tokens"]  # the latter for each text
        assert found == (len(tokens), n), found
        return answer

    return decode
