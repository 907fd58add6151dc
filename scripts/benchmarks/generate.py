"""Generation: tokens per second against transformers and against memory bandwidth."""

import copy
import itertools
import time
from collections.abc import Callable
from statistics import median

import torch
from benchmarks.machine import describe_machine, read_bandwidth, speedup, time_interleaved
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from gptmini.checkpoint.hf_gpt2 import to_gpt2
from gptmini.config import GPTConfig
from gptmini.generation.generate import generate, generate_tokens
from gptmini.generation.precision import set_precision
from gptmini.generation.sampling import Sampling
from gptmini.model import GPT

ROUNDS = 3
PROMPT, NEW, LONG_PROMPT = 32, 128, 1000
GPT2_124M = GPTConfig(n_layer=12, n_head=12, n_embd=768, context_length=1024, vocab_size=50257)


def bench_generate() -> None:
    """Tokens per second against transformers and memory bandwidth, with random GPT-2 124M weights."""
    torch.manual_seed(0)
    model = GPT(GPT2_124M).eval()
    models: dict[str, GPT | GPT2LMHeadModel] = {"transformers": transformers_twin(model)}
    models["transformers bf16"] = copy.deepcopy(models["transformers"]).bfloat16()
    for precision in ("fp32", "bf16", "int8"):
        models[precision] = set_precision(copy.deepcopy(model), precision)
    print(f"{describe_machine()}, {ROUNDS} rounds")
    # Decoding one token reads every weight once, so bandwidth over bytes of weights is an upper bound.
    bandwidth = read_bandwidth()
    weights_read = sum(p.numel() for p in model.parameters() if p is not model.position_embedding.weight)
    bounds = {
        name: bandwidth / (size * weights_read) for name, size in {"fp32": 4, "bf16": 2, "int8": 1}.items()
    }
    print(f"memory bandwidth {bandwidth / 1e9:.1f} GB/s; {weights_read / 1e6:.0f} M weights read per token")

    for batch in (1, 16):
        print(f"\nbatch {batch}, {PROMPT}-token prompt, {NEW} new tokens, greedy")
        tokens = torch.randint(50257, (batch, PROMPT))
        names = list(models) if batch == 1 else ["transformers", "fp32", "bf16"]
        rounds = time_interleaved({name: generation(models[name], tokens, NEW) for name in names}, ROUNDS)
        for name, seconds in rounds.items():
            speed = batch * NEW / median(seconds)
            line = f"  {name:18}{speed:8.1f} tokens/s   {speedup(rounds, name, 'transformers')}"
            if batch == 1 and name in bounds:
                line += f", {speed / bounds[name]:.0%} of the bandwidth's bound of {bounds[name]:.0f}"
            print(line)

    print(f"\nfirst token of a {LONG_PROMPT}-token prompt")
    tokens = torch.randint(50257, (1, LONG_PROMPT))
    rounds = time_interleaved({name: generation(m, tokens, 1) for name, m in models.items()}, ROUNDS)
    for name, seconds in rounds.items():
        print(f"  {name:18}{median(seconds) * 1e3:8.0f} ms         {speedup(rounds, name, 'transformers')}")

    print("\ntime per token as the text grows to the full context, batch 1")
    tokens = torch.randint(50257, (1, PROMPT))
    for name in ("fp32", "bf16"):
        seconds = token_seconds(models[name], tokens, GPT2_124M.context_length - PROMPT)
        first, last = median(seconds[1:65]), median(seconds[-64:])
        print(
            f"  {name:18}first 64 {first * 1e3:.1f} ms, last 64 {last * 1e3:.1f} ms, ratio {last / first:.2f}"
        )


def transformers_twin(model: GPT) -> GPT2LMHeadModel:
    """transformers' GPT-2 with the same weights."""
    c = model.config
    shape = {"vocab_size": c.vocab_size, "n_positions": c.context_length, "n_embd": c.n_embd}
    twin = GPT2LMHeadModel(GPT2Config(**shape, n_layer=c.n_layer, n_head=c.n_head, eos_token_id=None))
    twin.load_state_dict(to_gpt2(model.state_dict(), c), strict=False)
    return twin.eval()


def generation(model: GPT | GPT2LMHeadModel, tokens: Tensor, n: int) -> Callable[[], Tensor]:
    """Greedy generation of n tokens by the model's own library."""
    if isinstance(model, GPT):
        return lambda: generate(model, tokens, max_new_tokens=n, temperature=0.0)
    options = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(tokens)}
    return torch.inference_mode()(lambda: model.generate(tokens, max_new_tokens=n, **options))


def token_seconds(model: GPT, tokens: Tensor, n: int) -> list[float]:
    """Seconds that each of n new tokens takes."""
    times = [time.perf_counter()]
    for _ in generate_tokens(model, tokens.tolist(), Sampling(temperature=0.0), max_new_tokens=n):
        times.append(time.perf_counter())
    return [b - a for a, b in itertools.pairwise(times)]
