import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from gptmini.cli import main as main_module
from gptmini.config import RuntimeConfig
from gptmini.distributed.device import find_device
from gptmini.distributed.parent import torchrun_world_size
from gptmini.errors import UserError
from gptmini.training.runtime import explain_compile_failure, seed_everything, start_runtime
from gptmini.training.signals import stop_signal, temporary_folder


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("name", ["cuda", "cuda:3"])
def test_an_absent_cuda_device_is_a_user_error(name):
    with pytest.raises(UserError, match=f"device {name} was asked for, but this machine has none"):
        find_device(name)


def test_fp16_without_cuda_is_a_user_error():
    with pytest.raises(UserError, match=r"runtime\.precision = fp16 needs a CUDA device"):
        start_runtime(RuntimeConfig(device="cpu", precision="fp16"))


def test_a_compiler_that_fails_is_one_line(monkeypatch):
    from torch._dynamo.exc import TorchDynamoException

    def compiled(*args):
        raise TorchDynamoException("\nNo working C++ compiler found\n" + 90 * "a line\n")

    monkeypatch.setattr(torch, "compile", lambda function: compiled)
    line = r"^runtime\.compile = true: torch\.compile fails here \(No working C\+\+ compiler found\); install"
    with pytest.raises(UserError, match=line + ".*$"):
        start_runtime(RuntimeConfig(device="cpu", compile=True))
    with pytest.raises(UserError, match=line), explain_compile_failure():  # at the first step
        compiled()


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["", "x", None])
def test_half_set_variables_of_torchrun_are_one_line(name, value, monkeypatch, capsys):
    for other in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(other, "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    monkeypatch.setattr(main_module, "end_with_torchrun", lambda: None)  # it would watch the test's parent
    assert main_module.main(["train"]) == 2
    assert f"gptmini: {name} = {value!r}: torchrun sets a number" in capsys.readouterr().err


def test_an_empty_world_size_without_torchrun_is_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    assert torchrun_world_size() == 1


def test_auto_leaves_nothing_open():
    runtime = start_runtime(RuntimeConfig())
    assert runtime.precision in ("fp32", "bf16")
    assert runtime.threads == torch.get_num_threads()
    assert str(runtime.threads) == runtime.environment()["threads"]


def test_the_forward_pass_runs_in_the_chosen_precision():
    a = torch.ones(4, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with start_runtime(RuntimeConfig(device="cpu", precision=precision)).autocast():
            assert (a @ a).dtype == dtype


def test_seeding_depends_on_every_part_of_the_key_and_on_nothing_else():
    def uniform(*key):
        seed_everything(*key)
        return torch.rand(3).tolist()

    first = uniform(1, 2, 3)
    torch.rand(7)
    assert uniform(1, 2, 3) == first
    assert first not in (uniform(0, 2, 3), uniform(1, 3, 3), uniform(1, 2, 4), uniform(12, 3), uniform(1, 23))


SIGHUP = pytest.param(
    getattr(signal, "SIGHUP", None), marks=pytest.mark.skipif(sys.platform == "win32", reason="needs SIGHUP")
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, SIGHUP])
def test_a_signal_is_noted_and_the_old_handlers_come_back(number):
    before = signal.getsignal(number)
    with stop_signal() as stop:
        assert stop.received == 0
        os.kill(os.getpid(), number)
        assert stop.received == number
    assert signal.getsignal(number) is before


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGHUP")
def test_a_closing_terminal_may_send_any_number_of_signals():
    with stop_signal() as stop:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert stop.received == signal.SIGTERM


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGHUP")
def test_under_nohup_a_closed_terminal_changes_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_ends_the_process_at_once():
    code = (
        "import os, signal\n"
        "from gptmini.training.signals import stop_signal\n"
        "with stop_signal():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('first', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('second', flush=True)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "first\n"
    assert result.returncode == 128 + signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, SIGHUP])
def test_a_signal_ends_the_process_and_leaves_no_temporary_folder(number, tmp_path):
    program = (
        "import os, signal\n"
        "from gptmini.training.signals import temporary_folder\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "with temporary_folder() as folder:\n"
        "    (folder / 'some').mkdir()\n"
        "    (folder / 'some' / 'file').write_text('text')\n"
        "    print(folder, flush=True)\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    print('still there')\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, timeout=60)
    assert result.returncode == -number
    (folder,) = result.stdout.splitlines()
    assert os.path.dirname(folder) == str(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_temporary_folder_is_gone_after_the_block():
    before = signal.getsignal(signal.SIGINT)
    with temporary_folder() as folder:
        (folder / "file").write_text("text")
    assert not folder.exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_stop_signal_works_in_threads_where_no_signal_can_be_caught():
    seen = []

    def body():
        with stop_signal() as stop:
            seen.append(stop.received)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [0]
