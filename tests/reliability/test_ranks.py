"""One of several ranks is killed or stopped at a random time: the job ends by itself and names the rank.

Or torchrun itself is killed: its ranks save and end. Each job is a process group of its own with a limit in
seconds, after which all of it is killed: a killed rank may hold a lock that the others of a forked job share.

`with_torchrun` starts a job as a user does. `forked_job` is faster: torchrun's agent and the ranks are forks
of this process, in which PyTorch is imported already, but such an agent cannot end a rank that is stopped.
"""

import contextlib
import ctypes
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs

from gptmini.cli import main as cli

pytestmark = [
    pytest.mark.skipif("not hasattr(__import__('os'), 'pidfd_open')"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

CONFIG = runs.changed({"runtime": {"rank_timeout_seconds": 4.0}})
LONGER = runs.changed(
    {
        "runtime": {"rank_timeout_seconds": 4.0},
        "train": {"max_steps": 40, "sample_interval": None, "checkpoint_interval": 20},
    }
)
LIMIT = 60  # seconds for a job
START_LIMIT = 180  # and for one that torchrun starts: it imports PyTorch in three processes


def rank(args):
    """What each rank runs; it writes its process id to a file."""
    Path(f"rank-{os.environ['RANK']}").write_text(str(os.getpid()))
    ctypes.CDLL(None).prctl(1, 0)  # no signal at the parent's death: torch asks for one, torchrun does not
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    code = cli.main(["train", *args])
    sys.stdout.flush()
    if code:
        os._exit(code)


def forked_job(run):
    """A job of two ranks, its agent and its ranks forked; returns the agent's process id."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setpgid(0, 0)
        os.chdir(run)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=2, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
            run_id=run.name, max_restarts=0, start_method="fork", shutdown_timeout=2,
        )  # fmt: skip
        try:
            elastic_launch(config, rank)(runs.ARGS)
            code = 0
        except ChildFailedError as error:
            os.write(output, str(error).encode())
            code = 1
    finally:
        os._exit(code)


def with_torchrun(run):
    """The same by torchrun and scripts/train.py."""
    driver = run / "driver.py"
    driver.write_text(
        "import os, runpy\n"
        "open('rank-' + os.environ['RANK'], 'w').write(str(os.getpid()))\n"
        f"runpy.run_path({str(runs.ROOT / 'scripts' / 'train.py')!r}, run_name='__main__')\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with open(run / "output.txt", "w") as output:
        process = subprocess.Popen(
            [*torchrun, "--shutdown-timeout", "2", str(driver), *runs.ARGS],
            cwd=run,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    process.returncode = 0  # `ended_within` waits for it
    return process.pid


def rank_pid(run, number):
    """The process id of a rank, once it has started."""
    file, deadline = run / f"rank-{number}", time.monotonic() + START_LIMIT
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return int(file.read_text())


def ended_within(pid, seconds):
    """The exit code of a process, or None where it has not ended by then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return runs.ended(pid)
        time.sleep(0.02)
    return None


def end(agent, ranks=()):
    """Kill a job that is stuck: its process group, and ranks, for which torchrun makes groups."""
    for pid in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(agent, signal.SIGKILL)
    runs.ended(agent)


def finish(run, start_job):
    """Resume a job to its end."""
    agent = start_job(run)
    code, output = ended_within(agent, LIMIT), (run / "output.txt").read_text()
    if code is None:
        end(agent)
    assert code == 0, output


def seconds_of_a_job(folder, start_job, config=CONFIG):
    """Seconds from the start of both ranks to the end of an undisturbed job, `whole` in the folder."""
    whole = runs.new_run(folder, "whole", config)
    agent = start_job(whole)
    pids = [rank_pid(whole, 0), rank_pid(whole, 1)]
    started = time.monotonic()
    code = ended_within(agent, START_LIMIT)
    if code is None:
        end(agent, pids)
    assert code == 0, (whole / "output.txt").read_text()
    return time.monotonic() - started


def check_lost_ranks(folder, cases, number, start_job, seed=0):
    """Signal one rank at a random time: the job ends by itself, names it, and resumes to the same bits.

    Returns how many signals came after training had ended, which do not count as cases, and the longest time
    from a signal to the end of the job in seconds.
    """
    rng, seconds, late, longest = random.Random(seed), seconds_of_a_job(folder, start_job), 0, 0.0
    while cases:
        lost, run = rng.randrange(2), runs.new_run(folder, "lost", CONFIG)
        agent = start_job(run)
        pids = [rank_pid(run, 0), rank_pid(run, 1)]
        time.sleep(rng.uniform(0, seconds))
        is_over = "finished after step" in (run / "output.txt").read_text()
        started = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[lost], number)
        code = ended_within(agent, 5 if is_over else LIMIT)  # torchrun waits for ever for a stopped rank
        output = (run / "output.txt").read_text()
        if code is None:
            end(agent, pids)
        if code in (0, None) and "finished after step" in output:  # too late: no collective is left
            late += 1
        else:
            cases -= 1
            assert code == 1, (lost, code, output)
            longest = max(longest, time.monotonic() - started)
            by_us = re.search(rf"^gptmini: rank {lost} of 2 .*does not respond", output, re.MULTILINE)
            by_torchrun = re.search(rf"rank +: {lost} .*\n +exitcode +: -{number:d} ", output)
            assert by_us or (by_torchrun and number == signal.SIGKILL), output
            assert not re.search(rf"^gptmini: rank {1 - lost} of 2", output, re.MULTILINE), output
            runs.assert_whole(run)
            finish(run, forked_job)
        runs.assert_same_end(run, folder / "whole")
    return late, longest


def check_killed_torchrun(folder, cases, start_job, seed=0):
    """Kill torchrun at a random time: its ranks end within seconds, in one line, and nothing is lost.

    Counts as `check_lost_ranks` does.
    """
    rng, seconds, late, longest = random.Random(seed), seconds_of_a_job(folder, start_job, LONGER), 0, 0.0
    while cases:
        run = runs.new_run(folder, "orphaned", LONGER)
        agent = start_job(run)
        pids = children(agent, 2)
        time.sleep(rng.uniform(0, 0.8 * seconds))
        pids = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        ranks = [os.pidfd_open(pid) for pid in pids]
        started = time.monotonic()
        os.kill(agent, signal.SIGKILL)
        code = runs.ended(agent)
        for rank, pid in zip(ranks, pids, strict=True):
            readable, _, _ = select.select([rank], [], [], 30)
            if not readable:
                os.kill(pid, signal.SIGKILL)
            os.close(rank)
            assert readable, "a rank lives on without torchrun"
        output = (run / "output.txt").read_text()
        assert "Traceback" not in output, output
        if start_job is with_torchrun:  # a fork has loaded torch's logging before
            assert "frame #" not in output, output
        if code == 0 or "finished after step" in output:
            late += 1
        else:
            cases -= 1
            longest = max(longest, time.monotonic() - started)
            runs.assert_whole(run)
            finish(run, forked_job)
        runs.assert_same_end(run, folder / "whole")
    return late, longest


def children(pid, number):
    """The process ids of a process's children, once there are so many."""
    deadline, file = time.monotonic() + START_LIMIT, Path(f"/proc/{pid}/task/{pid}/children")
    while len(pids := file.read_text().split()) < number:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return [int(child) for child in pids]


@pytest.fixture
def _imported():
    """What DDP imports takes seconds: once here instead of in each fork."""
    import torch._dynamo  # noqa: F401

    runs.warm_up()


@pytest.mark.usefixtures("_imported")
def test_a_killed_rank_is_named_and_the_run_resumes_to_the_same_bits(tmp_path, long):
    late, longest = check_lost_ranks(tmp_path, 25 if long else 2, signal.SIGKILL, forked_job)
    print(f"kills of a rank: {25 if long else 2}, and {late} too late; the jobs ended in {longest:.1f} s")


@pytest.mark.usefixtures("_imported")
def test_a_hanging_rank_is_named_by_torchrun_and_the_run_resumes_to_the_same_bits(tmp_path, long):
    if not long:
        pytest.skip("takes minutes: --long")
    late, longest = check_lost_ranks(tmp_path, 25, signal.SIGSTOP, with_torchrun)
    print(f"SIGSTOPs of a rank: 25, and {late} too late; the jobs ended in {longest:.1f} s")


@pytest.mark.usefixtures("_imported")
def test_a_killed_torchrun_takes_its_ranks_along_and_nothing_is_lost(tmp_path, long):
    late, longest = check_killed_torchrun(tmp_path, 40 if long else 2, forked_job)
    print(
        f"kills of torchrun, forked: {40 if long else 2}, and {late} too late; ranks ended in {longest:.1f} s"
    )
    if long:
        late, longest = check_killed_torchrun(tmp_path, 10, with_torchrun)
        print(f"kills of torchrun: 10, and {late} too late; ranks ended in {longest:.1f} s")
