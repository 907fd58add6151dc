"""Whole training runs: killed, stopped, out of disk, repeated. The same bits at the end each time."""

from functools import partial

import pytest
import runs

from gptmini.config import RuntimeConfig
from gptmini.training.runtime import start_runtime

pytestmark = [
    pytest.mark.skipif("not hasattr(__import__('os'), 'pidfd_open')"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def test_a_run_resumed_from_any_step_ends_with_the_same_bits(tmp_path, long):
    cases = 0
    for number, sections in enumerate(VARIANTS if long else VARIANTS[:1]):
        (tmp_path / str(number)).mkdir()
        cases += runs.check_resume_from_every_step(tmp_path / str(number), 30 if long else 6, sections)
    print(f"steps resumed from: {cases}")


VARIANTS = [
    {},
    {"optim": {"optimizer": "adamw", "schedule": "cosine"}},
    {"model": {"attention": "sdpa"}, "train": {"micro_batch_size": None}, "optim": {"schedule": "wsd"}},
    {"train": {"eval_interval": 1, "sample_interval": 1, "log_interval": 3, "early_stop_patience": 20}},
]


def test_a_run_killed_at_random_instants_ends_with_the_same_bits(tmp_path, long):
    kills = 500 if long else 10
    number = runs.check_killed_runs(tmp_path, kills)
    print(f"kills of a process forked from a warm one: {kills}, in {number} runs")


def test_whole_processes_killed_at_random_instants_end_with_the_same_bits(tmp_path, long):
    runs.check_killed_process(tmp_path)
    if long:
        number = runs.check_killed_runs(tmp_path, 50, begin=runs.started)
        print(f"kills of python scripts/train.py: 50, in {number} runs")


def test_a_signal_at_any_time_saves_and_loses_nothing(tmp_path, long):
    ways = runs.check_stopped_runs(tmp_path, 460 if long else 10)
    print(f"signals at random times, processes forked from a warm one: {sum(ways.values())}: {ways}")
    assert ways["saved"] >= (200 if long else 1)


def test_a_signal_to_a_whole_process_saves_and_loses_nothing(tmp_path, long):
    if not long:
        pytest.skip("takes many seconds: --long")
    ways = runs.check_stopped_runs(tmp_path, 40, begin=runs.started)
    print(f"signals at random times, python scripts/train.py: {sum(ways.values())}: {ways}")
    assert ways["saved"] + ways["before training"] >= 10


def test_a_signal_at_any_line_of_the_loop_saves_and_a_second_one_ends_it(tmp_path, long):
    cases = runs.check_signal_at_every_line(tmp_path, 1 if long else 9)
    print(f"lines of the loop with one and with two signals: {cases}")


def test_after_a_power_loss_the_checkpoint_has_its_lines_of_metrics(tmp_path, long):
    cases = runs.check_power_loss_of_runs(tmp_path, 1 if long else 60)
    print(f"operations of a run at which the power went: {cases}")
    assert cases > 5


def test_what_was_changed_before_a_resume_is_named(tmp_path):
    runs.check_changes(tmp_path)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_config_gives_the_same_bits(tmp_path, long, threads, precision):
    if precision == "bf16" and start_runtime(RuntimeConfig(device="cpu")).precision != "bf16":
        pytest.skip("this processor emulates bfloat16")
    finish = partial(runs.finish, begin=runs.started) if long else runs.in_this_process
    times = runs.check_same_twice(tmp_path, 20 if long else 2, threads, precision, finish)
    print(f"runs of one config, {threads} threads, {precision}: {times}")


def test_evaluating_sampling_saving_and_logging_at_other_times_changes_no_bit(tmp_path):
    print(f"other intervals: {runs.check_intervals(tmp_path)}")


def test_a_number_that_is_not_finite_exits_3_and_names_the_windows(tmp_path):
    runs.check_divergence(tmp_path)


def test_a_finished_run_is_resumed_as_a_no_op(tmp_path):
    runs.check_finished_run(tmp_path)


def test_a_second_process_exits_5_and_a_killed_one_frees_the_folder(tmp_path):
    runs.check_locked_run(tmp_path)


def test_a_save_that_fails_exits_1_and_loses_nothing(tmp_path):
    runs.check_failing_save(tmp_path)
