import json
import sys

from gptmini.training.metrics import Metrics, read_metrics

KEYS = ["step", "split", "loss", "bits_per_byte", "lr", "grad_norm", "tokens"]
KEYS += ["tokens_per_second", "elapsed_seconds"]


def log_steps(path, steps, first_step=0):
    with Metrics(path.parent, first_step, max_steps=10, tokens_per_step=100, quiet=True) as metrics:
        for step in steps:
            metrics.count_step(0.5)
            metrics.log(step, "train", 2.0 / step, 1.0 / step, lr=0.1, grad_norm=1.0)


def test_a_line_has_the_documented_keys_and_true_values(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log_steps(path, [1, 2])
    lines = list(read_metrics(path))
    assert [list(line) for line in lines] == [KEYS, KEYS]
    assert lines[1]["tokens"] == 200
    assert lines[1]["tokens_per_second"] == 200.0


def test_lines_past_the_resumed_step_and_a_torn_last_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log_steps(path, [1, 2, 3, 4])
    spoiled = b'[]\n{"step": 1e400}\n' + b"[" * 100_000 + b"\n"
    path.write_bytes(path.read_bytes() + spoiled + b'{"step": 5, "spl')
    log_steps(path, [3, 4], first_step=2)
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4]


def test_elapsed_seconds_run_on_after_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log_steps(path, [1])
    line = json.loads(path.read_text()) | {"elapsed_seconds": 1000.0}
    path.write_text(json.dumps(line) + "\n")
    log_steps(path, [2], first_step=1)
    assert list(read_metrics(path))[1]["elapsed_seconds"] >= 1000.0


def test_without_a_terminal_plain_lines_are_printed(tmp_path, capsys):
    with Metrics(tmp_path, 0, 10, 100, quiet=False) as metrics:
        metrics.count_step(0.5)
        metrics.log(1, "train", 2.0, 1.0, lr=0.1, grad_norm=1.0)
        metrics.log(1, "val", 3.0, 1.5)
    out, err = capsys.readouterr()
    assert out == (
        "step  1/10  train  loss 2.0000  1.0000 bits/byte  200 tokens/s\n"
        "step  1/10  val    loss 3.0000  1.5000 bits/byte\n"
    )
    assert err == ""


def test_quiet_prints_nothing(tmp_path, capsys):
    log_steps(tmp_path / "metrics.jsonl", [1])
    assert capsys.readouterr() == ("", "")


def test_samples_are_kept_and_those_past_the_resumed_step_are_dropped(tmp_path):
    def write(steps, first_step):
        with Metrics(tmp_path, first_step, 10, 100, quiet=True) as metrics:
            for step in steps:
                metrics.log_sample(step, f"née\n{step}")

    write([1, 2, 3], first_step=0)
    write([3], first_step=2)
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"step": n, "text": f"née\n{n}"} for n in (1, 2, 3)]


def test_on_a_terminal_one_line_shows_loss_validation_speed_and_time_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Metrics(tmp_path, 0, 10, 100, quiet=False) as metrics:
        metrics.log(1, "val", 3.0, 1.5)
        for step in (1, 2):
            metrics.count_step(0.5)
            metrics.log(step, "train", 2.0, 1.0, lr=0.1, grad_norm=1.0)
        metrics.log(2, "val", 2.5, 1.2)
    out, err = capsys.readouterr()
    assert "step  1/10  val    loss 3.0000" in out
    assert "\x1b[3" not in err  # no colours, whatever NO_COLOR says
    last = err.split("\r")[-1]
    for part in ("step 2/10 |", " left", "loss 2.0000, val 2.5000, 200 tokens/s"):
        assert part in last
