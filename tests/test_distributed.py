"""Several ranks train as one process does, with ddp and fsdp: same windows and losses, one message, one exit.

The ranks are forks of this process, in which PyTorch is imported already, with the environment variables that
torchrun sets; one test runs torchrun itself.
"""

import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file

from gptmini.checkpoint.store import CheckpointStore
from gptmini.cli import main as cli
from gptmini.config import GPTConfig, RuntimeConfig, TrainConfig
from gptmini.data.batching import WindowSampler
from gptmini.distributed import failure
from gptmini.distributed.context import DistributedContext, to_local
from gptmini.errors import UserError
from gptmini.model import GPT
from gptmini.training import trainer
from gptmini.training.estimate import micro_batch_size_per_rank
from gptmini.training.runtime import start_runtime

pytestmark = [
    pytest.mark.skipif("not hasattr(__import__('os'), 'fork')"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

SCRIPT = Path(__file__).parent.parent / "scripts" / "train.py"
CONFIG = {
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 8, "dropout": 0.2},
    "data": {"corpus": "corpus.txt"},
    "tokenizer": {"kind": "bytes"},
    "optim": {"optimizer": "muon", "lr": 1e-2, "warmup_steps": 3, "schedule": "linear"},
    "train": {
        "out_dir": "run",
        "max_steps": 10,
        "batch_size": 4,
        "micro_batch_size": 2,
        "seed": 3,
        "eval_interval": 5,
        "eval_tokens": 212,
        "sample_interval": None,
        "checkpoint_interval": 5,
        "log_interval": 1,
    },
    "runtime": {"device": "cpu", "precision": "fp32", "threads": 1, "rank_timeout_seconds": 60},
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with a corpus and the config."""
    words = random.Random(0).choices(["the", "cat", "sees", "a", "dog", "and", "my", "bird.\n"], k=800)
    (tmp_path / "corpus.txt").write_text(" ".join(words), encoding="utf-8")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


_restarts = itertools.count()


@cache
def store():
    """One store for all groups; like torchrun's it outlives them."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture(autouse=True, scope="module")
def _imported():
    """What DDP and FSDP import takes seconds: once here instead of in each fork."""
    import torch._dynamo
    import torch.distributed.fsdp
    import torch.distributed.tensor  # noqa: F401


class Group:
    """Forked ranks that train together, or a single process; each calls `setup(rank)` first."""

    def __init__(self, *args, world_size=2, setup=lambda rank: None):
        sys.stdout.flush()
        self.restart = str(next(_restarts))
        self.output = Path("output.txt")
        self.output.unlink(missing_ok=True)
        store()
        self.pids = [self._fork(rank, world_size, args, setup) for rank in range(world_size)]

    def _fork(self, rank, world_size, args, setup):
        pid = os.fork()
        if pid:
            return pid
        code = 99
        signal.alarm(60)  # never wait forever
        try:
            output = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            if world_size > 1:
                os.environ |= {
                    "TORCHELASTIC_RUN_ID": "test",
                    "TORCHELASTIC_USE_AGENT_STORE": "True",
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(store().port),
                    "TORCHELASTIC_RESTART_COUNT": self.restart,
                    **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
                    **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(world_size)),
                }
            with open(1, "w") as sys.stdout, open(2, "w") as sys.stderr:
                setup(rank)
                code = cli.main(["train", "config.yaml", *args])
        except SystemExit as error:
            code = error.code
        except BaseException:
            os.write(output, traceback.format_exc().encode())
        finally:
            os._exit(code)

    def codes(self):
        """The exit codes, once all have ended; minus the signal that ended one."""
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.pids]

    def messages(self):
        """The error messages of all ranks together."""
        return [line for line in self.output.read_text().splitlines() if line.startswith("gptmini: ")]


def run_training(*args, name, world_size=2, setup=lambda rank: None):
    """The folder of a finished run."""
    group = Group("--train.out-dir", name, *args, world_size=world_size, setup=setup)
    assert group.codes() == [0] * world_size, group.output.read_text()
    return Path(name)


def metrics(run):
    """The lines of metrics, without the times."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in x.items() if k not in ("elapsed_seconds", "tokens_per_second")} for x in lines]


def tensors(run):
    """Weights and optimizer state at the end."""
    step = sorted((run / "checkpoints").iterdir())[-1]
    return {**load_file(step / "model.safetensors"), **load_file(step / "training" / "optimizer.safetensors")}


def assert_close(run, other, tolerance):
    """All losses and tensors of two runs agree."""
    for a, b in zip(metrics(run), metrics(other), strict=True):
        assert (a["step"], a["split"]) == (b["step"], b["split"])
        for metric in ("loss", "bits_per_byte", "grad_norm"):
            assert a[metric] == pytest.approx(b[metric], abs=tolerance), (a, b)
    ours, theirs = tensors(run), tensors(other)
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=10 * tolerance, rtol=0, msg=name)


def record_windows(name):
    """A setup that records the windows that each rank trains on, step by step."""

    def setup(rank):
        real = WindowSampler.batch

        def batch(self, starts):
            if self.seed == CONFIG["train"]["seed"]:  # not those of evaluation
                with open(f"{name}-{rank}.txt", "a") as file:
                    file.writelines(f"{start}\n" for start in starts)
            return real(self, starts)

        WindowSampler.batch = batch

    return setup


def recorded_windows(name, world_size, batch_size):
    """The recorded windows of each step, in the order of the ranks."""
    read = [[int(s) for s in Path(f"{name}-{rank}.txt").read_text().split()] for rank in range(world_size)]
    per_rank = batch_size // world_size
    steps = range(0, len(read[0]), per_rank)
    return [[start for rank in read for start in rank[i : i + per_rank]] for i in steps]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_ranks_train_on_the_same_windows_to_the_same_bits(optimizer):
    args = ["--optim.optimizer", optimizer, "--train.max-steps", "100"]
    args += ["--train.eval-interval", "50", "--train.eval-tokens", "50"]
    alone = run_training(*args, name="alone", world_size=1, setup=record_windows("alone"))
    both = run_training(*args, name="both", setup=record_windows("both"))
    windows = recorded_windows("alone", 1, 4)
    assert len(windows) == 100
    assert recorded_windows("both", 2, 4) == windows
    training = [[line for line in metrics(run) if line["split"] == "train"] for run in (alone, both)]
    assert training[0] == training[1]  # where each rank has one micro batch, a sum has one order
    ours, theirs = tensors(alone), tensors(both)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert_close(alone, both, 1e-12)


@pytest.mark.parametrize("world_size", [2, 4])
def test_more_micro_batches_than_ranks_agree_up_to_rounding(world_size, long):
    if world_size > 2 and not long:
        pytest.skip("takes some seconds: --long")
    args = ["--train.micro-batch-size", "1", "--train.batch-size", "8"]
    alone = run_training(*args, name="alone", world_size=1)
    assert_close(run_training(*args, name="several", world_size=world_size), alone, 1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_sharded_model_trains_as_an_unsharded_one(optimizer):
    args = ["--optim.optimizer", optimizer, "--train.micro-batch-size", "1"]
    args += ["--train.max-steps", "6", "--train.sample-interval", "5"]
    alone = run_training(*args, name="alone", world_size=1)
    sharded = run_training(*args, "--runtime.parallel", "fsdp", name="sharded")
    assert_close(sharded, alone, 1e-5)
    lines = [(run / "samples.jsonl").read_text() for run in (alone, sharded)]
    assert lines[0] == lines[1]


def test_a_run_resumes_from_one_process_on_two_sharded_and_back():
    unbroken = run_training(name="whole", world_size=1)
    args = ["--train.out-dir", "moving", "--resume"]
    for end, world_size, how, reason in [
        (2, 1, "ddp", None),
        (4, 2, "ddp", "ranks was 1 and is now 2"),
        (6, 2, "fsdp", "ranks was 2 and is now 2 with fsdp"),
        (8, 1, "fsdp", "ranks was 2 with fsdp and is now 1"),
        (10, 2, "fsdp", "ranks was 1 and is now 2 with fsdp"),
    ]:

        def end_at(rank, end=end):
            real = trainer.Trainer.train_step

            def train_step(self):
                if self.progress.step == end:
                    os.kill(os.getpid(), signal.SIGTERM)
                return real(self)

            trainer.Trainer.train_step = train_step

        group = Group(*args, "--runtime.parallel", how, world_size=world_size, setup=end_at)
        assert group.codes() == [0 if end == 10 else 75] * world_size, group.output.read_text()
        if reason:
            assert f"resumed, but not bit for bit, because {reason}\n" in group.output.read_text()
    assert_close(Path("moving"), unbroken, 1e-5)


def test_a_sharded_run_can_start_from_weights_and_take_a_shorter_context():
    run_training(name="pretrained", world_size=1)
    args = ["--train.init-from", "pretrained", "--model.context-length", "4", "--train.max-steps", "5"]
    alone = run_training(*args, name="alone", world_size=1)
    assert_close(run_training(*args, "--runtime.parallel", "fsdp", name="sharded"), alone, 1e-5)


def test_each_rank_holds_half_of_a_sharded_model_and_its_optimizer_and_starts_from_the_same_weights():
    args = ["--optim.optimizer", "adamw", "--runtime.parallel", "fsdp", "--train.max-steps", "1"]
    args += [
        "--model.n-embd",
        "64",
        "--train.sample-interval",
        "null",
        "--train.checkpoint-interval",
        "null",
    ]

    def setup(rank):
        real = trainer.Trainer.run

        def run(self, metrics, stop):
            weights = self.distributed.gather_full_state_dict(dict(self.model.named_parameters()))
            if rank == 0:
                torch.manual_seed(3)
                initial = dict(GPT(self.model.config).named_parameters())
                assert weights.keys() == initial.keys()
                assert all(torch.equal(weights[name], initial[name]) for name in initial)
            real(self, metrics, stop)
            held = [*self.model.parameters()]
            held += [
                value
                for optimizer in self.optimizers
                for s in optimizer.state.values()
                for value in s.values()
            ]
            held = [to_local(tensor) for tensor in held]
            Path(f"bytes-{rank}").write_text(str(sum(t.untyped_storage().nbytes() for t in held)))

        trainer.Trainer.run = run

    run_training(*args, name="run", setup=setup)
    shape = GPT(GPTConfig(**{**CONFIG["model"], "n_embd": 64, "vocab_size": 256}))
    full_bytes = 3 * 4 * sum(parameter.numel() for parameter in shape.parameters())
    for rank in range(2):
        assert int(Path(f"bytes-{rank}").read_text()) == pytest.approx(full_bytes / 2, rel=0.01)


def test_activation_checkpointing_changes_no_bit():
    plain = run_training(name="plain", world_size=1)
    recomputed = run_training("--runtime.activation-checkpointing", "true", name="again", world_size=1)
    assert metrics(recomputed) == metrics(plain)
    assert all(torch.equal(tensors(plain)[name], tensor) for name, tensor in tensors(recomputed).items())
    args = ["--runtime.activation-checkpointing", "true", "--runtime.parallel", "fsdp"]
    assert_close(run_training(*args, name="sharded"), plain, 1e-5)


def test_a_sharded_model_computes_in_bfloat16():
    args = ["--runtime.precision", "bf16", "--train.max-steps", "6", "--model.dropout", "0"]
    alone = run_training(*args, name="alone", world_size=1)
    sharded = run_training(*args, "--runtime.parallel", "fsdp", name="sharded")
    for a, b in zip(metrics(alone), metrics(sharded), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=0.02)
    assert all(tensor.dtype == torch.float32 for tensor in tensors(sharded).values())


# ------------------------------------------------------------------------------- errors and signals


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--train.max-step", "3"], r"unknown option --train.max-step; did you mean --train.max-steps\?"),
        (["--data.corpus", "nothing.txt"], r"data.corpus = nothing.txt.*"),
        (
            ["--train.batch-size", "3", "--train.micro-batch-size", "null"],
            r"train.batch_size = 3: needs to be a multiple of 2 ranks",
        ),
        (
            ["--train.batch-size", "6"],
            r"train.batch_size = 6: needs to be a multiple of micro_batch_size = 2 times 2 ranks",
        ),
        (["--runtime.device", "mps"], r"runtime.device = mps is one device, but there are 2 ranks; use auto"),
        (
            ["--runtime.parallel", "fsdp", "--runtime.precision", "fp16"],
            r"runtime.precision = fp16 needs a CUDA device, not cpu; use fp32 or bf16",
        ),
    ],
)
def test_a_mistake_is_reported_once_and_leaves_no_run_folder(args, line):
    group = Group(*args)
    assert 2 in group.codes()  # the other may still wait for it: torchrun ends it
    (message,) = group.output.read_text().splitlines()
    assert re.fullmatch(f"gptmini: {line}", message)
    assert not Path("run").exists()


def test_a_folder_that_is_used_is_refused_once():
    run_training(name="run")
    group = Group()
    assert group.codes()[0] == 2  # torchrun ends the other
    assert len(group.messages()) == 1
    with CheckpointStore(Path("run"), keep=1).lock():
        group = Group("--resume")
        assert group.codes()[0] == 5
    assert len(group.messages()) == 1


def test_a_signal_to_one_rank_stops_all_after_the_same_step():
    def setup(rank):
        real = trainer.Trainer.train_step

        def train_step(self):
            if self.progress.step == 3 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self)

        trainer.Trainer.train_step = train_step

    group = Group(setup=setup)
    assert group.codes() == [75, 75]
    assert group.messages() == ["gptmini: stopped by SIGTERM after step 3; continue with --resume"]
    assert Group("--resume").codes() == [0, 0]
    assert_close(Path("run"), run_training(name="undisturbed"), 0.0)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_non_finite_number_on_one_rank_stops_all_before_the_update(where):
    def setup(rank):
        real, calls = trainer.next_token_loss, []

        def spoiled(logits, targets):
            calls.append(1)
            if rank == 0 or len(calls) != 4:
                return real(logits, targets)
            if where == "loss":
                return real(logits, targets) * torch.nan
            logits.register_hook(lambda gradient: gradient * torch.nan)
            return real(logits, targets)

        trainer.next_token_loss = spoiled

    group = Group("--train.checkpoint-interval", "1", setup=setup)
    assert group.codes() == [3, 3]
    (message,) = group.messages()
    assert "training diverged at step 4: " in message
    assert CheckpointStore(Path("run"), keep=1).steps()[-1] == 3


def test_early_stopping_ends_all_ranks_at_the_same_step():
    args = ["--train.early-stop-patience", "1", "--train.eval-interval", "1", "--train.max-steps", "50"]
    run = run_training(*args, "--optim.lr", "3", "--optim.muon-lr", "3", name="run")
    assert metrics(run)[-1]["step"] < 50


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_rank_ends_the_others_and_is_named(lost, number, long):
    if not long and (lost, number) in ((0, signal.SIGKILL), (1, signal.SIGSTOP)):
        pytest.skip("two of four: --long")

    def setup(rank):
        real, failure.FAILURE_GRACE_SECONDS = trainer.Trainer.train_step, 0.5

        def train_step(self):
            if self.progress.step == 7 and rank == lost:
                os.kill(os.getpid(), number)
            return real(self)

        trainer.Trainer.train_step = train_step

    begun = time.monotonic()
    group = Group("--runtime.rank-timeout-seconds", "2", setup=setup)
    assert os.waitstatus_to_exitcode(os.waitpid(group.pids[1 - lost], 0)[1]) == 1
    assert time.monotonic() - begun < 60  # a busy machine included; without an end it would wait for ever
    os.kill(group.pids[lost], signal.SIGKILL)
    os.waitpid(group.pids[lost], 0)
    (message,) = group.messages()
    assert message.startswith(f"gptmini: rank {lost} of 2 (counted from 0) does not respond")
    assert "Traceback" not in group.output.read_text()
    assert Group("--resume").codes() == [0, 0]
    assert_close(Path("run"), run_training(name="undisturbed"), 0.0)


@pytest.mark.parametrize(
    ("causes", "found"),
    [(["lost", "lost"], [0, 1]), (["lost", "failed"], []), (["lost", None], [1])],
    ids=["each lost the other", "one failed by itself", "one is gone"],
)
def test_where_no_rank_says_why_the_lost_ones_do(monkeypatch, causes, found):
    monkeypatch.setattr(failure, "FAILURE_GRACE_SECONDS", 0.2)
    store = dist.HashStore()
    if causes[1] is not None:
        failure.find_missing_ranks(store, 1, 2, wait=causes[1] == "lost")
    assert failure.find_missing_ranks(store, 0, 2, wait=True) == found


def test_torchrun_trains_and_restarts_after_a_kill():
    """The real launcher: rank 1 is killed and restarted, and the job ends as if nothing happened."""
    driver = Path("driver.py")
    driver.write_text(
        "import os, runpy, signal\n"
        "from gptmini.training import trainer\n"
        "real = trainer.Trainer.train_step\n"
        "def train_step(self):\n"
        "    restart, rank = os.environ['TORCHELASTIC_RESTART_COUNT'], os.environ['RANK']\n"
        "    if self.progress.step == 7 and (restart, rank) == ('0', '1'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self)\n"
        "trainer.Trainer.train_step = train_step\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*torchrun, "--max-restarts", "1", str(driver), "config.yaml", "--resume"],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "exitcode: -9" in result.stderr.replace("  ", " ")
    assert "local_rank: 1" in result.stderr
    assert result.stdout.count("2 ranks, each cpu") == 2
    assert "resumed at step 5" in result.stdout
    assert_close(Path("run"), run_training(name="undisturbed"), 0.0)


def test_two_nodes_meet_train_and_resume(long):
    """Two torchruns with an address of their own each meet, as two machines do."""
    if not long:
        pytest.skip("takes half a minute: --long")
    with socket.create_server(("127.0.0.2", 0)) as free:
        port = free.getsockname()[1]

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--rdzv-id", "test", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.2:{port}"]

    def node(number, *args):
        return subprocess.Popen(
            [*torchrun, "--local-addr", f"127.0.0.{2 + number}", str(SCRIPT), "config.yaml", *args],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    for args in (
        ["--train.max-steps", "5", "--optim.schedule", "constant"],
        ["--optim.schedule", "constant", "--resume"],
    ):
        nodes = [node(number, *args) for number in (0, 1)]
        messages = [process.communicate(timeout=120)[0] for process in nodes]
        assert [process.returncode for process in nodes] == [0, 0], messages
        assert sum("2 ranks, each cpu" in text for text in messages) == 1
    assert any("because train.max_steps was 5 and is now 10\n" in text for text in messages)
    assert_close(Path("run"), run_training("--optim.schedule", "constant", name="undisturbed"), 0.0)


# ----------------------------------------------------------------------------------------- single functions


def test_every_validation_batch_is_on_one_rank_and_sharded_ranks_run_equally_many():
    batches = [(torch.tensor([[i]]), torch.tensor([[i]])) for i in range(7)]
    for sharded in (False, True):
        given = [
            list(DistributedContext(rank, 4, sharded=sharded).shard_batches(batches)) for rank in range(4)
        ]
        assert sorted(t.item() for shard in given for _, t in shard if len(t)) == list(range(7))
        if sharded:
            assert [len(shard) for shard in given] == [2, 2, 2, 2]


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused():
    assert micro_batch_size_per_rank(TrainConfig(batch_size=8, micro_batch_size=2), 4) == 2
    with pytest.raises(UserError, match="multiple of micro_batch_size = 2 times 4 ranks"):
        micro_batch_size_per_rank(TrainConfig(batch_size=12, micro_batch_size=2), 4)


def test_ranks_on_one_machine_share_its_cores_and_never_a_gpu():
    threads = torch.get_num_threads()
    try:
        cores = len(os.sched_getaffinity(0))
        runtime = start_runtime(
            RuntimeConfig(device="cpu"), DistributedContext(world_size=2, local_world_size=2)
        )
        assert runtime.threads == max(1, cores // 2)
    finally:
        torch.set_num_threads(threads)
    many = torch.cuda.device_count() + 1
    with pytest.raises(UserError, match=rf"device = cuda: {many} ranks on this machine need as many GPUs"):
        start_runtime(RuntimeConfig(device="cuda"), DistributedContext(world_size=9, local_world_size=many))


@pytest.mark.skipif("__import__('torch').cuda.device_count() < 2", reason="needs two CUDA GPUs")
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_gpus_train_as_one_does(how):
    def run(world_size, name):
        args = [
            "config.yaml",
            "--runtime.device",
            "cuda",
            "--runtime.parallel",
            how,
            "--train.out-dir",
            name,
        ]
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(world_size),
        ]
        subprocess.run([*torchrun, str(SCRIPT), *args], check=True, timeout=300)
        return Path(name)

    assert_close(run(2, "both"), run(1, "alone"), 1e-4)
