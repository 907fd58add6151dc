"""Measurements, side by side in one run: `python scripts/bench.py generate`.

Each number is the best of several rounds, and a round takes everything in turn, so that what else the
machine does disturbs all alike.
"""

import copy
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # run from a checkout, installed or not

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from gptmini.checkpoint.gpt2_files import to_gpt2
from gptmini.config import GPTConfig
from gptmini.cpu_linear import speed_up
from gptmini.generate import generate, generate_tokens
from gptmini.model import GPT
from gptmini.sampling import Sampling

ROUNDS = 5
PROMPT, NEW, LONG_PROMPT = 32, 128, 1000
GPT2_124M = GPTConfig(n_layer=12, n_head=12, n_embd=768, context_length=1024, vocab_size=50257)


def bench_generate() -> None:
    """Tokens per second against transformers and against the memory, on random GPT-2 124M weights."""
    torch.manual_seed(0)
    model = GPT(GPT2_124M).eval()
    models: dict[str, GPT | GPT2LMHeadModel] = {"transformers": transformers_twin(model)}
    for weights in ("fp32", "bf16", "int8"):
        models[weights] = speed_up(copy.deepcopy(model), weights)
    weight_bytes = 4 * sum(p.numel() for p in model.parameters() if p is not model.position_embedding.weight)
    bandwidth = read_bandwidth()
    bound = bandwidth / weight_bytes
    cpu = torch.backends.cpu.get_cpu_capability()
    print(f"{torch.get_num_threads()} threads, {cpu}, torch {torch.__version__}")
    print(f"memory gives {bandwidth / 1e9:.1f} GB/s, so {bound:.1f} tokens/s of {weight_bytes / 1e6:.0f} MB")

    for batch, names in ((1, list(models)), (16, ["transformers", "fp32"])):
        tokens = torch.randint(50257, (batch, PROMPT))
        print(f"\nbatch {batch}, {PROMPT}-token prompt, {NEW} new tokens")
        seconds = best_of_rounds({name: generation(models[name], tokens, NEW) for name in names})
        speeds = {name: batch * NEW / s for name, s in seconds.items()}
        for name, speed in speeds.items():
            ratio = f"{speed / speeds['transformers']:.2f} x transformers"
            share = f", {speed / bound:.0%} of the bound" if name == "fp32" and batch == 1 else ""
            print(f"  {name:14}{speed:8.1f} tokens/s  {ratio}{share}")

    tokens = torch.randint(50257, (1, PROMPT))
    gaps = token_seconds(models["fp32"], tokens, GPT2_124M.context_length - PROMPT)
    first, last = (sorted(part)[len(part) // 2] for part in (gaps[1:65], gaps[-64:]))
    print("\ncost per token as the text grows to the whole context, fp32, batch 1")
    print(f"  first 64 {first * 1e3:.1f} ms, last 64 {last * 1e3:.1f} ms, ratio {last / first:.2f}")

    tokens = torch.randint(50257, (1, LONG_PROMPT))
    print(f"\nfirst token after a {LONG_PROMPT}-token prompt")
    seconds = best_of_rounds({name: generation(models[name], tokens, 1) for name in models})
    for name, s in seconds.items():
        print(f"  {name:14}{s * 1e3:8.0f} ms        {seconds['transformers'] / s:.2f} x transformers")


def transformers_twin(model: GPT) -> GPT2LMHeadModel:
    """transformers' GPT-2 with the same weights."""
    c = model.config
    shape = {"vocab_size": c.vocab_size, "n_positions": c.context_length, "n_embd": c.n_embd}
    twin = GPT2LMHeadModel(GPT2Config(**shape, n_layer=c.n_layer, n_head=c.n_head, eos_token_id=None))
    twin.load_state_dict(to_gpt2(model.state_dict(), c), strict=False)
    return twin.eval()


def generation(model: GPT | GPT2LMHeadModel, tokens: Tensor, n: int) -> Callable[[], Tensor]:
    """Greedy generation of n tokens, by the model's own library."""
    if isinstance(model, GPT):
        return lambda: generate(model, tokens, max_new_tokens=n, temperature=0.0)
    options = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(tokens)}
    return torch.inference_mode()(lambda: model.generate(tokens, max_new_tokens=n, **options))


def best_of_rounds(tasks: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Seconds of each task in its best round."""
    best = dict.fromkeys(tasks, float("inf"))
    for _ in range(ROUNDS):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def token_seconds(model: GPT, tokens: Tensor, n: int) -> list[float]:
    """Seconds that each of n new tokens takes."""
    times = [time.perf_counter()]
    for _ in generate_tokens(model, tokens.tolist(), Sampling(temperature=0.0), max_new_tokens=n):
        times.append(time.perf_counter())
    return [b - a for a, b in itertools.pairwise(times)]


def read_bandwidth() -> float:
    """Bytes per second at which a plain sum reads 1 GiB."""
    memory = torch.ones(2**28)
    return memory.nbytes / best_of_rounds({"sum": memory.sum})["sum"]


if __name__ == "__main__":
    commands = {"generate": bench_generate}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(f"usage: python scripts/bench.py {'|'.join(commands)}")
    commands[sys.argv[1]]()
