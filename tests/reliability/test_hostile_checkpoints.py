"""Checkpoints made to do harm: nothing is executed, memory is bounded, and the refusal is one clean line."""

import checks
import pytest

pytestmark = [
    pytest.mark.skipif("not hasattr(__import__('os'), 'fork')"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def test_hostile_checkpoints_are_refused(tmp_path):
    print(f"hostile checkpoints refused: {checks.check_hostile(tmp_path)}")
