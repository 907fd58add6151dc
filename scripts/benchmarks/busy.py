"""A busy machine: speed beside K processes that spin, against the fair share of the speed alone.

Each contender is a process that waits until it is its turn; `python -m benchmarks.busy` starts one.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from benchmarks.processes import ROOT, TORCHRUN, metrics, run, write_words

LOADS = (0, 1, 2, 4)  # processes that spin
SECONDS = 1.5  # of one measurement
SPINS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
WITHOUT = {"GOMP_SPINCOUNT": "300000"}  # libgomp's default
SPIN = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with the benchmark
TASKS = ("train", "evaluate", "generate", "report")
RANKS = "train on two ranks"


def bench_busy(nanogpt: Path | None, rounds: int, spins: list[int]) -> None:
    """Print the speed of each contender alone, and beside K processes as a fraction of its fair share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(f"{cores} cores, medians of {rounds} rounds")
    print(f"units per second alone; beside K processes the fraction of {cores} / ({cores} + K) of that")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        write_words(folder / "corpus.txt", 300_000)
        run([sys.executable, str(ROOT / "scripts" / "train.py"), *train_args(folder / "run", 1)], cwd=folder)
        contenders = {task: stack.enter_context(worker(task, {}, folder)) for task in TASKS}
        contenders[RANKS] = lambda: ranks_speed(folder)
        for task in TASKS:
            contenders[f"{task}, libgomp's default"] = stack.enter_context(worker(task, WITHOUT, folder))
        for count in spins:
            spin = {"GOMP_SPINCOUNT": str(count)}
            contenders[f"train, {count:,} spins"] = stack.enter_context(worker("train", spin, folder))
        passive = worker("train", {"OMP_WAIT_POLICY": "PASSIVE"}, folder)
        contenders["train, OMP_WAIT_POLICY=PASSIVE"] = stack.enter_context(passive)
        contenders["transformers"] = stack.enter_context(worker("transformers", WITHOUT, folder))
        if nanogpt is not None:
            contenders["nanoGPT"] = stack.enter_context(worker(str(nanogpt.resolve()), WITHOUT, folder))
        speeds = {(name, load): [0.0] * rounds for name in contenders for load in LOADS}
        for number in range(rounds):
            for load in LOADS:
                with spinning(load):
                    for name, measure in contenders.items():
                        speeds[name, load][number] = measure()
        print(f"{'':36}{'alone':>12}" + "".join(f"  K = {load}" for load in LOADS[1:]))
        for name in contenders:
            alone = median(speeds[name, 0])
            shares = [median(speeds[name, load]) / alone * (cores + load) / cores for load in LOADS[1:]]
            print(f"{name:36}{alone:8,.0f} /s" + "".join(f"{share:7.0%}" for share in shares))


@contextmanager
def spinning(count: int) -> Iterator[None]:
    """Inside, as many other processes keep a core busy each."""
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    time.sleep(0.3)
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@contextmanager
def worker(task: str, variables: dict[str, str], folder: Path) -> Iterator[Callable[[], float]]:
    """A process that has warmed up; each call lets it work for SECONDS, and returns its units per second."""
    environment = {name: value for name, value in os.environ.items() if name not in SPINS} | variables
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'scripts'}"
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.busy", task],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    requests, replies = process.stdin, process.stdout

    def measure() -> float:
        requests.write("go\n")
        requests.flush()
        if not (reply := replies.readline()):
            sys.exit(f"{task}: its process ended")
        return float(reply)

    try:
        measure()
        yield measure
    finally:
        process.kill()
        process.wait()


def ranks_speed(folder: Path) -> float:
    """Tokens per second of two ranks with one thread each, a run of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        script, args = str(ROOT / "scripts" / "train.py"), train_args(Path(out, "run"), 40)
        run([*TORCHRUN, "2", script, *args], cwd=folder)
        lines = [line for line in metrics(Path(out, "run")) if line["split"] == "train"]
    return median(line["tokens_per_second"] for line in lines[1:])


def train_args(out: Path, steps: int) -> list[str]:
    """A run of the size of configs/python_docs.yaml on bytes, nearly all of it steps."""
    values = {
        "data.corpus": "corpus.txt",
        "tokenizer.kind": "bytes",
        "train.out-dir": out,
        "train.max-steps": steps,
        "train.batch-size": 16,
        "train.eval-interval": steps,
        "train.eval-tokens": 1000,
        "runtime.device": "cpu",
    }
    config = out.parent / "run.yaml"
    config.write_text("train: {log_interval: 4}\nmodel: {attention: additive}\n")
    options = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    return [str(config), "--quiet", *options]


def build_task(name: str) -> Callable[[], int]:
    """What a worker repeats: a function that returns how many tokens, or reports, it has worked on."""
    import torch
    from benchmarks.train import gptmini_step, load_nanogpt, nanogpt_step, transformers_step

    import gptmini
    from gptmini.report.page import write_report

    shape = {"n_layer": 4, "n_head": 4, "n_embd": 128, "context_length": 128, "attention": "additive"}
    config, tokens = gptmini.GPTConfig(vocab_size=257, **shape), torch.randint(65, (16, 129))
    if name in ("evaluate", "generate"):
        model, tokenizer = gptmini.load("run")
        text = Path("corpus.txt").read_text()[:16_384]
        if name == "evaluate":
            return lambda: gptmini.evaluate(model, tokenizer, text).tokens
        return lambda: gptmini.generate(model, tokens[:1, :32], max_new_tokens=64)[0].numel() - 32
    if name == "report":
        return lambda: len([write_report(["run"], Path("report.html"), "cpu")])
    if name == "train":
        step = gptmini_step(config, tokens, "muon", "auto")
    elif name == "transformers":
        step = transformers_step(config, tokens)
    else:
        step = nanogpt_step(load_nanogpt(Path(name)), config, tokens)
    return lambda: step() or 16 * 128


def work(task: Callable[[], int]) -> None:
    """Repeat the task for SECONDS at each line of standard input; print its tokens per second."""
    for _ in sys.stdin:
        started, count = time.perf_counter(), 0
        while (seconds := time.perf_counter() - started) < SECONDS:
            count += task()
        print(count / seconds, flush=True)


if __name__ == "__main__":
    import gptmini  # before torch, as it says how long threads spin

    assert gptmini.__version__
    work(build_task(sys.argv[1]))
