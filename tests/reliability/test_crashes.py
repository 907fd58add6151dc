"""Kill -9, power loss, and disks that fail: a complete checkpoint each time."""

import checks
import pytest

pytestmark = [
    pytest.mark.skipif("not hasattr(__import__('os'), 'fork')"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def test_a_kill_at_any_operation_leaves_the_previous_or_the_new_checkpoint(tmp_path, long):
    kills = checks.check_kills(tmp_path, stride=1 if long else 13)
    print(f"kills at an operation or inside a write: {kills}")
    assert kills >= (300 if long else 20)


def test_a_kill_loses_no_file_of_others_in_a_step_folder(tmp_path, long):
    kills = checks.check_kills(tmp_path, stride=1 if long else 37, strays=True)
    print(f"kills beside files of others: {kills}")
    assert kills >= (300 if long else 8)


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(tmp_path, long):
    chains = 250 if long else 5
    kills = checks.check_kill_chains(tmp_path, chains)
    print(f"runs killed at random operations: {chains}, kills: {kills}")
    assert kills >= chains // 2


def test_after_a_power_loss_there_is_a_complete_checkpoint(tmp_path, long):
    sampled, distinct = checks.check_power_loss(tmp_path, 10_000 if long else 120)
    print(f"states after a power loss: {sampled}, distinct: {distinct}")


def test_a_failing_disk_is_reported_and_loses_nothing(tmp_path, long):
    cases = checks.check_faults(tmp_path, stride=1 if long else 23)
    print(f"failed operations (ENOSPC, EIO, EROFS; once, for good): {cases}")
    assert cases >= (1000 if long else 40)


def test_short_writes_lose_nothing(tmp_path, long):
    cases = checks.check_short_writes(tmp_path, stride=1 if long else 9)
    print(f"operations tried with short writes: {cases}")
    assert cases >= 15


def test_a_disk_that_corrupts_a_write_is_noticed(tmp_path, long):
    cases = checks.check_lying_disk(tmp_path, stride=1 if long else 3)
    print(f"operations tried with a corrupted write: {cases}")
    assert cases >= (70 if long else 20)
