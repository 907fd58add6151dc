"""Generation: tokens per second against transformers, ctranslate2, llama.cpp and memory bandwidth."""

import copy
import itertools
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from benchmarks.decoders import Decoder, ctranslate2_decoders, llama_cpp_decoder, transformers_decoder
from benchmarks.machine import describe_machine, read_bandwidth, speedup, time_interleaved
from torch import Tensor

from gptmini.config import GPTConfig
from gptmini.generation.generate import generate, generate_tokens
from gptmini.generation.precision import set_precision
from gptmini.generation.sampling import Sampling
from gptmini.model import GPT

PROMPT, LONG_PROMPT = 32, 1000
NEW = {1: 96, 16: 32}  # new tokens by batch
GPT2_124M = GPTConfig(n_layer=12, n_head=12, n_embd=768, context_length=1024, vocab_size=50257)
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}  # of a weight
REFERENCE = "transformers fp32"


@torch.inference_mode()
def bench_generate(rounds: int) -> None:
    """Tokens per second of each program that is installed, with random GPT-2 124M weights."""
    torch.manual_seed(0)
    model = GPT(GPT2_124M).eval()
    models = {
        precision: set_precision(copy.deepcopy(model), precision) for precision in ("fp32", "bf16", "int8")
    }
    decoders = {f"gptmini {name}": decoder(m) for name, m in models.items()}
    with tempfile.TemporaryDirectory() as folder:
        decoders |= peers(model, Path(folder))
    print(f"{describe_machine()}, {rounds} rounds")
    # Decoding one token reads every weight once, so bandwidth over bytes of weights is an upper bound.
    bandwidth = read_bandwidth()
    weights_read = sum(p.numel() for p in model.parameters() if p is not model.position_embedding.weight)
    bounds = {
        f"gptmini {name}": bandwidth / (size * weights_read)
        for name, size in zip(models, (4, 2, 1), strict=True)
    }
    print(f"memory bandwidth {bandwidth / 1e9:.1f} GB/s; {weights_read / 1e6:.0f} M weights read per token")

    for batch, n in NEW.items():
        print(f"\nbatch {batch}, {PROMPT}-token prompt, {n} new tokens, greedy")
        seconds = time_decoders(decoders, torch.randint(50257, (batch, PROMPT)), n, rounds)
        for name, measured in seconds.items():
            speed = batch * n / median(measured)
            bound = bounds.get(name) if batch == 1 else None
            share = f", {speed / bound:.0%} of the bandwidth's bound of {bound:.0f}" if bound else ""
            print(f"  {name:22}{speed:8.1f} tokens/s   {speedup(seconds, name, REFERENCE)}{share}")

    print(f"\nfirst token of a {LONG_PROMPT}-token prompt")
    seconds = time_decoders(decoders, torch.randint(50257, (1, LONG_PROMPT)), 1, rounds)
    for name, measured in seconds.items():
        print(f"  {name:22}{median(measured) * 1e3:8.0f} ms         {speedup(seconds, name, REFERENCE)}")

    print("\ntime per token as the text grows to the full context, batch 1")
    tokens = torch.randint(50257, (1, PROMPT))
    for name, m in models.items():
        times = token_seconds(m, tokens, GPT2_124M.context_length - PROMPT)
        first, last = median(times[1:65]), median(times[-64:])
        print(
            f"  {name:8}first 64 {first * 1e3:.1f} ms, last 64 {last * 1e3:.1f} ms, ratio {last / first:.2f}"
        )


def decoder(model: GPT) -> Decoder:
    """Our own, as the others are called."""
    return lambda tokens, n: generate(model, tokens, max_new_tokens=n, temperature=0.0)


def peers(model: GPT, folder: Path) -> dict[str, Decoder]:
    """The other programs; those that are not installed are left out, with a line."""
    found = {
        REFERENCE: transformers_decoder(model, torch.float32),
        "transformers bf16": transformers_decoder(model, torch.bfloat16),
    }
    try:
        kinds = ctranslate2_decoders(model, folder / "ctranslate2", ("float32", "int8_float32"))
        found |= {f"ctranslate2 {kind}": decode for kind, decode in kinds.items()}
        for dtype in ("float32", "float16", "q8_0"):
            path = folder / f"{dtype}.gguf"
            found[f"llama.cpp {dtype}"] = llama_cpp_decoder(model, path, dtype, max(NEW))
    except ImportError as error:
        print(f"left out: {error}")
    return found


def time_decoders(
    decoders: dict[str, Decoder], tokens: Tensor, n: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each decoder in each round."""
    tasks = {name: (lambda decode=decode: decode(tokens, n)) for name, decode in decoders.items()}
    return time_interleaved(tasks, rounds)


def token_seconds(model: GPT, tokens: Tensor, n: int) -> list[float]:
    """Seconds that each of n new tokens takes."""
    times = [time.perf_counter()]
    for _ in generate_tokens(model, tokens.tolist(), Sampling(temperature=0.0), max_new_tokens=n):
        times.append(time.perf_counter())
    return [b - a for a, b in itertools.pairwise(times)]
