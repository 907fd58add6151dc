"""Memory: the peak of training runs, each a process of its own, against the estimate of `gptmini plan`."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.processes import ROOT, TORCHRUN, run, write_words

from gptmini.config import Config, GPTConfig, load_config
from gptmini.data.prepare import prepare
from gptmini.training.estimate import PYTORCH_BYTES, RANKS_BYTES, estimate

SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "context_length": 128}
MEDIUM = {"n_layer": 6, "n_head": 6, "n_embd": 384, "context_length": 256}
WIDE = {"n_layer": 4, "n_head": 12, "n_embd": 768, "context_length": 256}
DEEP = {"n_layer": 12, "n_head": 8, "n_embd": 512, "context_length": 256}
FITTED: list[dict[str, Any]] = [  # the constants in training/estimate.py were fitted to these
    {"model": SMALL, "batch": 32},
    {"model": SMALL, "batch": 32, "precision": "bf16", "optimizer": "muon"},
    {"model": MEDIUM, "batch": 12},
    {"model": MEDIUM, "batch": 12, "precision": "bf16"},
    {"model": {**MEDIUM, "dropout": 0.1}, "batch": 12},
    {"model": MEDIUM, "batch": 12, "precision": "bf16", "optimizer": "muon"},
    {"model": {**MEDIUM, "attention": "sdpa"}, "batch": 12},
    {"model": {**MEDIUM, "attention": "sdpa"}, "batch": 12, "precision": "bf16"},
    {"model": {**MEDIUM, "attention": "sdpa", "dropout": 0.1}, "batch": 12, "precision": "bf16"},
    {"model": MEDIUM, "batch": 16, "micro": 4, "precision": "bf16"},
    {"model": WIDE, "batch": 4},
    {"model": WIDE, "batch": 4, "optimizer": "muon"},
    {"model": WIDE, "batch": 4, "precision": "bf16", "optimizer": "muon"},
    {"model": MEDIUM, "batch": 8, "precision": "bf16", "vocab_size": 16384},
    {"model": MEDIUM, "batch": 12, "precision": "bf16", "checkpointing": True},
    {"ranks": 2, "model": MEDIUM, "batch": 12, "precision": "bf16"},
    {"ranks": 2, "model": WIDE, "batch": 4},
    {"ranks": 2, "parallel": "fsdp", "model": MEDIUM, "batch": 12, "precision": "bf16"},
    {"ranks": 2, "parallel": "fsdp", "model": WIDE, "batch": 4},
    {"ranks": 2, "parallel": "fsdp", "model": WIDE, "batch": 4, "optimizer": "muon"},
    {"ranks": 2, "parallel": "fsdp", "checkpointing": True, "model": {**WIDE, "n_layer": 8}, "batch": 8},
]
HELD_OUT: list[dict[str, Any]] = [
    {
        "model": {"n_layer": 3, "n_head": 4, "n_embd": 256, "context_length": 512, "attention": "sdpa"},
        "batch": 8,
        "precision": "bf16",
    },
    {
        "model": {"n_layer": 12, "n_head": 8, "n_embd": 256, "context_length": 128},
        "batch": 24,
        "optimizer": "muon",
    },
    {"model": {"n_layer": 2, "n_head": 8, "n_embd": 1024, "context_length": 128}, "batch": 16},
    {"model": DEEP, "batch": 6, "precision": "bf16", "checkpointing": True},
    {"ranks": 2, "model": DEEP, "batch": 8, "optimizer": "muon"},
    {"ranks": 2, "parallel": "fsdp", "model": DEEP, "batch": 8, "precision": "bf16"},
    {"ranks": 2, "parallel": "fsdp", "checkpointing": True, "model": DEEP, "batch": 16},
]


def bench_memory() -> None:
    """Print the estimated and the measured peak of each run, and the error."""
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        write_words(text, 4_000_000)
        print(f"{'':58}{'estimate':>9}{'measured':>10}{'error':>9}", flush=True)
        smallest = {"model": {"n_layer": 1, "n_head": 1, "n_embd": 8, "context_length": 8}, "batch": 2}
        print_row("the smallest run: PyTorch itself", PYTORCH_BYTES, peak_bytes(config_of(smallest, text), 1))
        of_two = peak_bytes(config_of(smallest, text), 2)
        print_row("the smallest run on two ranks", PYTORCH_BYTES + RANKS_BYTES, of_two)
        for title, runs in (("", FITTED), ("held out:", HELD_OUT)):
            print(title, end="\n" if title else "")
            for values in runs:
                config, world_size = config_of(values, text), values.get("ranks", 1)
                model = GPTConfig(vocab_size=config.tokenizer.vocab_size or 257, **config.model.model_dump())
                estimated = estimate(config, model, None, config.runtime.precision, world_size).memory.peak
                print_row(title_of(values), estimated, peak_bytes(config, world_size))


def title_of(values: dict[str, Any]) -> str:
    """A short description of a run."""
    model = values["model"]
    parts = [
        f"{values['ranks']} ranks" if "ranks" in values else None,
        values.get("parallel"),
        f"{model['n_layer']} x {model['n_embd']}",
        f"T {model['context_length']}",
        f"B {values['batch']}" + (f" of {values['micro']}" if "micro" in values else ""),
        values.get("precision", "fp32"),
        values.get("optimizer"),
        model.get("attention"),
        "dropout" if "dropout" in model else None,
        f"{values['vocab_size']:,} tokens" if "vocab_size" in values else None,
        "checkpointed" if "checkpointing" in values else None,
    ]
    return ", ".join(part for part in parts if part)


def print_row(name: str, estimated: int, measured: int) -> None:
    """Print one row of the table."""
    error = estimated / measured - 1
    print(f"{name:58}{estimated / 2**20:5,.0f} MiB{measured / 2**20:6,.0f} MiB{error:+9.1%}", flush=True)


def config_of(values: dict[str, Any], text: Path) -> Config:
    """The config of a run of three steps with an evaluation and a checkpoint."""
    bpe = {"kind": "bpe", "vocab_size": values["vocab_size"]} if "vocab_size" in values else {"kind": "bytes"}
    sections = {
        "model": values["model"],
        "data": {"corpus": str(text)},
        "tokenizer": bpe,
        "optim": {"optimizer": values.get("optimizer", "adamw")},
        "train": {
            "batch_size": values["batch"],
            "micro_batch_size": values.get("micro"),
            "max_steps": 3,
            "eval_tokens": 10_000,
        },
        "runtime": {
            "device": "cpu",
            "precision": values.get("precision", "fp32"),
            "parallel": values.get("parallel", "ddp"),
            "activation_checkpointing": values.get("checkpointing", False),
        },
    }
    path = text.with_suffix(".yaml")
    path.write_text(json.dumps(sections))  # JSON is YAML
    return load_config(path)


# VmHWM is the peak resident memory of this program alone; ru_maxrss includes the process that started it.
RUN = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from gptmini.cli.main import main
code = main(sys.argv[1:])
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
sys.stdout.write(peak + "\\n")  # at once, as another rank writes too
sys.exit(code)
"""


def peak_bytes(config: Config, world_size: int) -> int:
    """Peak resident memory of the largest rank of a run, on a corpus that is prepared already; Linux only."""
    prepare(config.data, config.tokenizer, config.model.context_length)
    with tempfile.TemporaryDirectory() as folder:
        path, program = Path(folder, "config.yaml"), Path(folder, "run.py")
        path.write_text(config.model_dump_json())
        program.write_text(RUN)
        python = [sys.executable] if world_size == 1 else [*TORCHRUN, str(world_size)]
        args = ["train", str(path), "--quiet", "--train.out-dir", f"{folder}/run"]
        peaks = run([*python, str(program), *args], cwd=Path(folder)).split()
        return 1024 * max(map(int, peaks))
