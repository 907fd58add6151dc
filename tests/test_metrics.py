import json
import re
import sys

import pytest

from gptmini.errors import DamagedError
from gptmini.training.log_files import MetricsLine, SampleLine, parse_line, read_log, read_metrics
from gptmini.training.metrics import Metrics
from gptmini.training.progress import Progress

KEYS = ["step", "split", "loss", "bits_per_byte", "lr", "grad_norm", "tokens"]
KEYS += ["tokens_per_second", "elapsed_seconds"]


def log_steps(path, steps, first_step=0):
    with Metrics(path.parent, first_step, max_steps=10, tokens_per_step=100, quiet=True) as metrics:
        for step in steps:
            metrics.count_step(0.5)
            metrics.log(
                Progress(step, tokens=100 * step), "train", 2.0 / step, 1.0 / step, lr=0.1, grad_norm=1.0
            )


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
    line = json.loads(path.read_text()) | {"elapsed_seconds": 1000.0}  # no part of the checksum
    path.write_text(json.dumps(line) + "\n")
    log_steps(path, [2], first_step=1)
    assert list(read_metrics(path))[1]["elapsed_seconds"] >= 1000.0


def test_without_a_terminal_plain_lines_are_printed(tmp_path, capsys):
    with Metrics(tmp_path, 0, 10, 100, quiet=False) as metrics:
        metrics.count_step(0.5)
        metrics.log(Progress(1), "train", 2.0, 1.0, lr=0.1, grad_norm=1.0)
        metrics.log(Progress(1), "val", 3.0, 1.5)
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
    assert [json.loads(line)["text"] for line in lines] == [f"née\n{n}" for n in (1, 2, 3)]
    assert list(read_log(tmp_path / "samples.jsonl", SampleLine)) == [
        {"step": n, "text": f"née\n{n}"} for n in (1, 2, 3)
    ]


def test_on_a_terminal_one_line_shows_loss_validation_speed_and_time_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Metrics(tmp_path, 0, 10, 100, quiet=False) as metrics:
        metrics.log(Progress(1), "val", 3.0, 1.5)
        for step in (1, 2):
            metrics.count_step(0.5)
            metrics.log(Progress(step), "train", 2.0, 1.0, lr=0.1, grad_norm=1.0)
        metrics.log(Progress(2), "val", 2.5, 1.2)
    out, err = capsys.readouterr()
    assert "step  1/10  val    loss 3.0000" in out
    assert "\x1b[3" not in err  # no colours, whatever NO_COLOR says
    last = err.split("\r")[-1]
    for part in ("step 2/10 |", " left", "loss 2.0000, val 2.5000, 200 tokens/s"):
        assert part in last


OURS = {"step": 1, "split": "train", "loss": 2.5, "bits_per_byte": 1.25, "lr": 0.1, "grad_norm": 1.0}
OURS |= {"tokens": 100, "tokens_per_second": 10.0, "elapsed_seconds": 1.5}


def changed(**values):
    """A line as an earlier version wrote it, without a checksum, with other values; ... leaves a key out."""
    line = {key: value for key, value in (OURS | values).items() if value is not ...}
    return json.dumps(line).encode() + b"\n"


FOREIGN = {
    "a key misspelt": changed(loss=..., lors=2.5),
    "a key missing": changed(split=...),
    "a byte order mark": b"\xef\xbb\xbf" + changed(),
    "not UTF-8": changed().replace(b"train", b"tr\xffin"),
    "no object": b"[1]\n",
    "no JSON": b"step 1: loss 2.5\n",
    "zeros of a power loss": b"\0\0\0\0\n",
    "another program's step": b'{"step": 1, "accuracy": 0.5}\n',
    "another split": changed(split="test"),
    "a number as text": changed(loss="2.5"),
    "NaN as text": changed(loss="NaN"),
    "a boolean": changed(loss=True),
    "a boolean step": changed(step=True),
    "a fraction of a step": changed(step=1.5),
    "a negative step": changed(step=-1),
    "a huge step": changed(step=10**30),
    "an infinite step": b'{"step": 1e400}\n',
    "endless digits": b'{"step": ' + b"1" * 5000 + b"}\n",
    "endless nesting": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("line", FOREIGN.values(), ids=FOREIGN)
def test_a_line_that_no_run_wrote_is_named_by_readers_and_dropped_at_a_resume(tmp_path, capsys, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(changed() + line + changed(step=2))
    with pytest.raises(DamagedError, match=r"metrics\.jsonl: line 2 is not what a run writes$"):
        list(read_metrics(path))
    with Metrics(tmp_path, 5, 10, 100, quiet=True):  # --quiet is no reason to lose a line without a word
        pass
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    assert capsys.readouterr().err == f"{path}: dropped a line that is not what a run writes\n"


@pytest.mark.parametrize(
    ("order", "named"),
    {
        "a line twice": ([0, 1, 1, 2], 3),
        "two lines swapped": ([0, 2, 1], 3),
        "the last line first": ([2, 0, 1], 2),
        "a line without its checksum": ([0, 1, -1], 3),
    }.values(),
)
def test_lines_that_were_repeated_moved_or_stripped_of_their_checksum_are_named(tmp_path, order, named):
    path = tmp_path / "metrics.jsonl"
    log_steps(path, [1, 2, 3])
    lines = path.read_bytes().splitlines(keepends=True)
    lines.append(re.sub(rb', "crc32": "[0-9a-f]+"', b"", lines[2]))
    path.write_bytes(b"".join(lines[number] for number in order))
    with pytest.raises(DamagedError, match=f"line {named} is not what a run writes$"):
        list(read_metrics(path))


def test_a_run_of_an_earlier_version_resumed_by_this_one_has_checksums_from_there_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(changed() + changed(split="val"))
    log_steps(path, [2, 3], first_step=1)
    assert [line["step"] for line in read_metrics(path)] == [1, 1, 2, 3]


def test_several_foreign_lines_are_counted_in_one_printed_line(tmp_path, capsys):
    (tmp_path / "samples.jsonl").write_bytes(b'{"step": 1, "text": "\\ud800"}\n{"step": 2, "text": 3}\n')
    with Metrics(tmp_path, 5, 10, 100, quiet=False):
        pass
    expected = f"{tmp_path / 'samples.jsonl'}: dropped 2 lines that are not what a run writes\n"
    assert capsys.readouterr().err == expected


def test_any_flipped_bit_of_a_line_is_noticed_or_changes_no_value_but_a_time(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log_steps(path, [1])
    line = path.read_bytes()
    (written,) = read_metrics(path)
    for bit in range(8 * (len(line) - 1)):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        found = parse_line(bytes(flipped), MetricsLine)
        times = {key: (found or {}).get(key) for key in ("tokens_per_second", "elapsed_seconds")}
        assert found is None or found == written | times


def test_lines_of_earlier_and_later_versions_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log_steps(path, [1])
    (written,) = read_metrics(path)
    line = json.loads(path.read_bytes())
    checksum = line.pop("crc32")
    assert parse_line(json.dumps(line).encode(), MetricsLine) == written
    later = {"step": 3, "text": "Once", "score": 1.5}
    text = json.dumps({**later, "crc32": "59b51331"}).encode()
    assert parse_line(text, SampleLine) == {"step": 3, "text": "Once"}
    assert parse_line(json.dumps({**later, "crc32": checksum}).encode(), SampleLine) is None


def test_numbers_that_are_not_finite_are_read_as_null():
    line = changed(loss=float("nan"), grad_norm=float("inf"))
    assert parse_line(line, MetricsLine) == OURS | {"loss": None, "grad_norm": None}
