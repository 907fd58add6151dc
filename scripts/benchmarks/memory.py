"""Memory: the peak of whole training runs, each a process of its own, beside what `gptmini plan` says."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.train import ROOT, run, write_words

from gptmini.config import Config, GPTConfig, load_config
from gptmini.data.preparation import prepare
from gptmini.training.plan import PYTORCH_BYTES, plan

SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "context_length": 128}
MEDIUM = {"n_layer": 6, "n_head": 6, "n_embd": 384, "context_length": 256}
WIDE = {"n_layer": 4, "n_head": 12, "n_embd": 768, "context_length": 256}
RUNS: dict[str, dict[str, Any]] = {  # dotted keys, besides those that all runs share
    "4 x 128, T 128, B 32, fp32": {"model": SMALL, "batch": 32},
    "4 x 128, T 128, B 32, bf16, Muon": {"model": SMALL, "batch": 32, "precision": "bf16", "muon": True},
    "6 x 384, T 256, B 12, fp32": {"model": MEDIUM, "batch": 12},
    "6 x 384, T 256, B 12, bf16": {"model": MEDIUM, "batch": 12, "precision": "bf16"},
    "6 x 384, T 256, B 12, fp32, dropout": {"model": {**MEDIUM, "dropout": 0.1}, "batch": 12},
    "6 x 384, T 256, B 12, bf16, Muon": {"model": MEDIUM, "batch": 12, "precision": "bf16", "muon": True},
    "6 x 384, T 256, B 12, sdpa, fp32": {"model": {**MEDIUM, "attention": "sdpa"}, "batch": 12},
    "6 x 384, T 256, B 12, sdpa, bf16": {
        "model": {**MEDIUM, "attention": "sdpa"},
        "batch": 12,
        "precision": "bf16",
    },
    "6 x 384, T 256, B 12, sdpa, bf16, dropout": {
        "model": {**MEDIUM, "attention": "sdpa", "dropout": 0.1},
        "batch": 12,
        "precision": "bf16",
    },
    "6 x 384, T 256, B 16 of 4, bf16": {"model": MEDIUM, "batch": 16, "micro": 4, "precision": "bf16"},
    "4 x 768, T 256, B 4, fp32": {"model": WIDE, "batch": 4},
    "4 x 768, T 256, B 4, fp32, Muon": {"model": WIDE, "batch": 4, "muon": True},
    "4 x 768, T 256, B 4, bf16, Muon": {"model": WIDE, "batch": 4, "precision": "bf16", "muon": True},
    "6 x 384, T 256, B 8, 16,384 tokens, bf16": {
        "model": MEDIUM,
        "batch": 8,
        "precision": "bf16",
        "vocab_size": 16384,
    },
}


def bench_memory() -> None:
    """Print the peak of each run, what was planned, and how far off that is."""
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        write_words(text, 4_000_000)
        print(f"{'':42}{'planned':>9}{'measured':>10}{'off by':>9}", flush=True)
        smallest = {"model": {"n_layer": 1, "n_head": 1, "n_embd": 8, "context_length": 8}, "batch": 1}
        show("the smallest run: PyTorch itself", PYTORCH_BYTES, peak_bytes(config_of(smallest, text)))
        for name, values in RUNS.items():
            config = config_of(values, text)
            model = GPTConfig(vocab_size=config.tokenizer.vocab_size or 257, **config.model.model_dump())
            planned = plan(config, model, None, config.runtime.precision).memory.peak
            show(name, planned, peak_bytes(config))


def show(name: str, planned: int, measured: int) -> None:
    """One row."""
    off = planned / measured - 1
    print(f"{name:42}{planned / 2**20:5,.0f} MiB{measured / 2**20:6,.0f} MiB{off:+9.1%}", flush=True)


def config_of(values: dict[str, Any], text: Path) -> Config:
    """The config of a run of three steps, evaluated and saved."""
    bpe = {"kind": "bpe", "vocab_size": values["vocab_size"]} if "vocab_size" in values else {"kind": "bytes"}
    sections = {
        "model": values["model"],
        "data": {"corpus": str(text)},
        "tokenizer": bpe,
        "optim": {"optimizer": "muon" if values.get("muon") else "adamw"},
        "train": {
            "batch_size": values["batch"],
            "micro_batch_size": values.get("micro"),
            "max_steps": 3,
            "eval_tokens": 10_000,
        },
        "runtime": {"precision": values.get("precision", "fp32"), "device": "cpu"},
    }
    path = text.with_suffix(".yaml")
    path.write_text(json.dumps(sections))  # JSON is YAML
    return load_config(path)


# A process's highest resident memory since its program began: ru_maxrss also remembers who started it.
RUN = """
import sys
from gptmini.cli import main
code = main(sys.argv[1:])
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(peak)
sys.exit(code)
"""


def peak_bytes(config: Config) -> int:
    """The highest resident memory of `gptmini train` on a corpus that is prepared already; for Linux."""
    prepare(config.data, config.tokenizer, config.model.context_length)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(config.model_dump_json())
        words = ["train", str(path), "--quiet", "--train.out-dir", f"{folder}/run"]
        return 1024 * int(run([sys.executable, "-c", RUN, *words], cwd=ROOT))
