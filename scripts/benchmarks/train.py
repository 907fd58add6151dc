"""Training: time to a loss, tokens per second, and the fraction of the machine's matmul peak.

Compares gptmini with transformers' GPT-2 in a plain loop and, where a checkout is given, with nanoGPT.
"""

import importlib.util
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from benchmarks.machine import describe_machine, matmul_flops, read_bandwidth, speedup, time_interleaved
from benchmarks.processes import ROOT, TRAIN, format_numbers, metrics, run, write_config, write_words
from transformers import GPT2Config, GPT2LMHeadModel

from gptmini.config import GPTConfig, OptimConfig, RuntimeConfig
from gptmini.model import GPT
from gptmini.training.estimate import flops_per_token
from gptmini.training.loss import next_token_loss
from gptmini.training.optim import build_optimizers
from gptmini.training.runtime import start_runtime

SHAPES = {  # layers, heads, width, context, sequences per batch
    "4 layers, 128 wide, context 64, batch 12": (4, 4, 128, 64, 12),
    "6 layers, 384 wide, context 256, batch 12": (6, 6, 384, 256, 12),
}
NANOGPT_CPU = (  # its README's command for a laptop without a GPU
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 "
    "--lr_decay_iters=2000 --dropout=0.0"
)


TABLES = ("time", "tokens", "step", "context", "corpus", "rest", "start")


def bench_train(nanogpt: Path | None, rounds: int, only: Sequence[str]) -> None:
    """Print the tables named by `only`."""
    print(describe_machine())
    tables: dict[str, Callable[[], None]] = {
        "time": lambda: time_to_loss(nanogpt, rounds),
        "tokens": loss_for_tokens,
        "step": lambda: step_speed(nanogpt, rounds),
        "context": lambda: cost_of_context(rounds),
        "corpus": cost_of_corpus,
        "rest": cost_of_the_rest,
        "start": lambda: cost_of_starting(rounds),
    }
    for name in only:
        print()
        tables[name]()


def time_to_loss(nanogpt: Path | None, rounds: int) -> None:
    """Seconds of whole processes, interleaved, from the same text to about the same validation loss."""
    print("whole process to nanoGPT's loss on a CPU: tiny Shakespeare, characters, context 64")
    candidates: dict[str, Callable[[Path], float]] = {"gptmini": gptmini_loss}
    if nanogpt is not None:
        candidates["nanoGPT"] = lambda folder: nanogpt_loss(nanogpt, folder)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    losses = dict.fromkeys(candidates, float("nan"))
    for _ in range(rounds):
        for name, train in candidates.items():
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                losses[name] = train(Path(folder))
                seconds[name].append(time.perf_counter() - started)
    for name, runs in seconds.items():
        median, rounds_text = statistics.median(runs), format_numbers(runs)
        print(f"  {name:10}{median:8.1f} s   validation loss {losses[name]:.4f}   rounds: {rounds_text}")
    if nanogpt is not None:
        pairs = [b / a for a, b in zip(seconds["gptmini"], seconds["nanoGPT"], strict=True)]
        print(f"  nanoGPT / gptmini: {statistics.median(pairs):.1f}   rounds: {format_numbers(pairs)}")


def gptmini_loss(folder: Path) -> float:
    """Train configs/shakespeare_chars.yaml; returns the loss over the whole validation split."""
    config = ROOT / "configs" / "shakespeare_chars.yaml"
    run([*TRAIN, str(config), "--train.out-dir", str(folder / "run"), "--quiet"])
    return float(metrics(folder / "run")[-1]["loss"])


def loss_for_tokens() -> None:
    """The loss that gptmini reaches with the model size and tokens of nanoGPT's CPU command."""
    print("nanoGPT's CPU size and tokens: 4 layers, 128 wide, context 64, 2,000 steps of 12 sequences")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        config: dict[str, dict[str, object]] = {
            "model": {"n_layer": 4, "n_head": 4, "n_embd": 128, "context_length": 64, "bias": False},
            "data": {"corpus": "tiny-shakespeare"},
            "tokenizer": {"kind": "chars"},
            "optim": {"optimizer": "muon", "lr": 0.01, "muon_lr": 0.02, "weight_decay": 0.1}
            | {"warmup_steps": 20, "schedule": "linear", "min_lr_ratio": 0.0},
            "train": {"out_dir": str(out), "max_steps": 2000, "batch_size": 12, "eval_interval": 2000},
        }
        started = time.perf_counter()
        run([*TRAIN, write_config(config, Path(folder)), "--quiet"])
        last = metrics(out)[-1]
        tokens, seconds = last["tokens"], time.perf_counter() - started
        print(f"  gptmini: validation loss {last['loss']:.4f} after {tokens:,} tokens, {seconds:.1f} s")


def nanogpt_loss(checkout: Path, folder: Path) -> float:
    """Run nanoGPT's own command; returns its own estimate of the validation loss."""
    if not (checkout / "data" / "shakespeare_char" / "train.bin").exists():
        sys.exit(f"{checkout}: run its data/shakespeare_char/prepare.py first")
    output = run([sys.executable, *NANOGPT_CPU.split(), f"--out_dir={folder}"], cwd=checkout)
    return float(re.findall(r"val loss ([0-9.]+)", output)[-1])


def step_speed(nanogpt: Path | None, rounds: int) -> None:
    """Tokens per second of whole optimizer steps, and their FLOP/s against the matmul peak."""
    peaks = {name: matmul_flops(dtype) for name, dtype in FORMATS.items()}
    print("optimizer steps (forward, backward, clipping, update)")
    for name, flops in peaks.items():
        print(f"  matmul peak in {name}, 2048 x 2048: {flops / 1e9:.0f} GFLOP/s")
    print(f"  memory bandwidth: {read_bandwidth() / 1e9:.1f} GB/s")
    for title, (n_layer, n_head, n_embd, context_length, batch_size) in SHAPES.items():
        shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "context_length": context_length}
        config = GPTConfig(vocab_size=65, bias=False, attention="additive", **shape)
        tokens = torch.randint(65, (batch_size, context_length + 1))
        tasks = {
            f"gptmini, {optimizer}, {precision}": gptmini_step(config, tokens, optimizer, precision)
            for optimizer, precision in [("adamw", "fp32"), ("adamw", "bf16"), ("muon", "bf16")]
        }
        tasks["transformers, fp32"] = transformers_step(config, tokens)
        if nanogpt is not None:
            tasks["nanoGPT, fp32"] = nanogpt_step(load_nanogpt(nanogpt), config, tokens)
        print(f"  {title}")
        seconds = time_interleaved({name: repeated(step, 5) for name, step in tasks.items()}, 2 * rounds + 1)
        reference = "transformers, fp32" if nanogpt is None else "nanoGPT, fp32"
        for name, runs in seconds.items():
            speed = 5 * batch_size * context_length / statistics.median(runs)
            flops = speed * flops_per_token(config)
            utilization = flops / peaks["bf16" if "bf16" in name else "fp32"]
            print(
                f"    {name:22}{speed:9,.0f} tokens/s  {speedup(seconds, name, reference)}, "
                f"{flops / 1e9:.0f} GFLOP/s, {utilization:.0%} of the peak"
            )


FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def gptmini_step(
    config: GPTConfig, tokens: torch.Tensor, optimizer: str, precision: str
) -> Callable[[], None]:
    """The work of Trainer.train_step, on a batch in memory."""
    runtime = start_runtime(RuntimeConfig(precision=precision))
    model = GPT(config)
    optimizers = build_optimizers(model, OptimConfig(optimizer=optimizer), runtime.matmul_dtype)

    def step() -> None:
        with runtime.autocast():
            logits = model(tokens[:, :-1])
        next_token_loss(logits, tokens[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()

    return step


def transformers_step(config: GPTConfig, tokens: torch.Tensor) -> Callable[[], None]:
    """A plain training step of transformers' GPT-2."""
    shape = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
    rates = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=65, n_positions=config.context_length, bos_token_id=0, eos_token_id=0, **shape, **rates
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        model(tokens[:, :-1], labels=tokens[:, :-1]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        optimizer.step()
        optimizer.zero_grad()

    return step


def nanogpt_step(nanogpt: ModuleType, config: GPTConfig, tokens: torch.Tensor) -> Callable[[], None]:
    """nanoGPT's model and optimizer, in the order in which its train.py calls them."""
    shape = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
    model = nanogpt.GPT(
        nanogpt.GPTConfig(vocab_size=65, block_size=config.context_length, dropout=0.0, bias=False, **shape)
    )
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")

    def step() -> None:
        model(tokens[:, :-1], tokens[:, 1:].contiguous())[1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def load_nanogpt(checkout: Path) -> ModuleType:
    """The model.py of a nanoGPT checkout."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cost_of_context(rounds: int) -> None:
    """Time per token against the context length, for each attention."""
    print("microseconds per token against the context, 4 layers, 128 wide, 4,096 tokens a step")
    for attention in ("eager", "additive", "sdpa"):
        tasks = {}
        for length in (64, 128, 256, 512, 1024):
            config = GPTConfig(
                vocab_size=65, n_layer=4, n_head=4, n_embd=128, context_length=length, attention=attention
            )
            tokens = torch.randint(65, (4096 // length, length + 1))
            tasks[str(length)] = gptmini_step(config, tokens, "muon", "auto")
        seconds = time_interleaved(tasks, rounds)
        costs = {n: statistics.median(runs) / 4096 * 1e6 for n, runs in seconds.items()}
        print(f"  {attention:8}" + "  ".join(f"{n:>5}: {cost:5.1f}" for n, cost in costs.items()))


def cost_of_corpus() -> None:
    """Tokens per second and peak memory of whole runs on larger and larger corpora of synthetic words."""
    print("corpus of synthetic words, bytes, default model, 60 steps")
    with tempfile.TemporaryDirectory() as folder:
        for megabytes in (1, 30, 1000):
            text, out = Path(folder, f"{megabytes}.txt"), Path(folder, f"run-{megabytes}")
            write_words(text, megabytes * 10**6)
            config = {
                "data": {"corpus": str(text), "val_fraction": 0.1 / megabytes},
                "tokenizer": {"kind": "bytes"},
                "train": {"out_dir": str(out), "max_steps": 60, "eval_tokens": 10_000},
            }
            run([*TRAIN, write_config(config, Path(folder)), "--quiet"])
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            speeds = [line["tokens_per_second"] for line in metrics(out) if line["split"] == "train"]
            speed = statistics.median(speeds)
            print(
                f"  {megabytes:5,} MB: {speed:8,.0f} tokens/s, preparation included in {peak / 1024:,.0f} MiB"
            )


def cost_of_the_rest() -> None:
    """The fraction of the default run that is not training steps, from its metrics."""
    print("evaluation, logging, sampling and checkpoints in configs/python_docs.yaml")
    with tempfile.TemporaryDirectory() as folder:
        config = str(ROOT / "configs" / "python_docs.yaml")
        run([*TRAIN, config, "--train.out-dir", f"{folder}/run", "--quiet"])
        lines = metrics(Path(folder, "run"))
    train = [line for line in lines if line["split"] == "train"]
    tokens = [b["tokens"] - a["tokens"] for a, b in zip([{"tokens": 0}, *train], train, strict=False)]
    steps = sum(n / line["tokens_per_second"] for n, line in zip(tokens, train, strict=True))
    total = lines[-1]["elapsed_seconds"]
    print(f"  {total:.1f} s, {steps:.1f} s of them in steps: the rest takes {1 - steps / total:.1%}")


def cost_of_starting(rounds: int) -> None:
    """Seconds of --help, of importing torch, and of a run of one step."""
    print("start-up, whole processes")
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        write_words(text, 200_000)
        config = {
            "data": {"corpus": str(text)},
            "tokenizer": {"kind": "bytes"},
            "train": {"max_steps": 1, "eval_tokens": 64},
        }
        path = write_config(config, Path(folder))
        outs = (str(Path(folder, f"run-{i}")) for i in range(rounds + 1))
        tasks = {
            "gptmini --help": lambda: run([sys.executable, "-m", "gptmini", "--help"], cwd=ROOT),
            "python -c 'import torch'": lambda: run([sys.executable, "-c", "import torch"]),
            "gptmini train, 1 step, saved": lambda: run(
                [*TRAIN, path, "--quiet", "--train.out-dir", next(outs)]
            ),
        }
        for name, seconds in time_interleaved(tasks, rounds).items():
            print(f"  {name:30}{statistics.median(seconds):6.2f} s")


def repeated(task: Callable[[], None], times: int) -> Callable[[], None]:
    """A task that runs `task` several times."""

    def repeat() -> None:
        for _ in range(times):
            task()

    return repeat
