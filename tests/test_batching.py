import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptmini.data.batching import WindowSampler, validation_batches


@pytest.mark.parametrize(("length", "context_length"), [(5, 4), (9, 4), (103, 7), (1000, 16)])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_window_of_an_epoch_is_seen_exactly_once(length, context_length, batch_size):
    windows = WindowSampler(np.arange(length), context_length, seed=5)
    steps = -(-2 * windows.per_epoch // batch_size)
    seen = np.concatenate([windows.starts(step, batch_size) for step in range(steps)])
    for epoch in range(2):
        starts = np.sort(seen[epoch * windows.per_epoch : (epoch + 1) * windows.per_epoch])
        assert len(starts) == windows.per_epoch
        assert set(np.diff(starts).tolist()) <= {context_length}
        assert starts[0] < context_length
        assert starts[-1] + context_length < length


def test_a_batch_depends_on_seed_and_step_alone():
    tokens = np.arange(1000)
    a, b = WindowSampler(tokens, 8, seed=1), WindowSampler(tokens, 8, seed=1)
    b.starts(3, 4)
    assert a.starts(7, 4).tolist() == b.starts(7, 4).tolist()
    assert a.starts(7, 4).tolist() != WindowSampler(tokens, 8, seed=2).starts(7, 4).tolist()
    joined = np.concatenate([a.starts(step, 2) for step in range(4)])
    assert joined.tolist() == np.concatenate([a.starts(step, 4) for step in range(2)]).tolist()


def test_targets_are_the_inputs_shifted_by_one():
    windows = WindowSampler(np.arange(100, dtype=np.uint16), 8, seed=0)
    inputs, targets = windows.batch(windows.starts(0, 4))
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape == (4, 8)
    assert torch.equal(inputs + 1, targets)


@given(length=st.integers(2, 200), context_length=st.integers(1, 30), batch_size=st.integers(1, 5))
def test_a_validation_pass_predicts_every_token_but_the_first_once(length, context_length, batch_size):
    batches = list(validation_batches(np.arange(length), context_length, batch_size))
    targets = torch.cat([t.flatten() for _, t in batches])
    assert targets.tolist() == list(range(1, length))
    assert all(torch.equal(inputs + 1, t) for inputs, t in batches)


def test_a_limited_validation_pass_predicts_that_many_tokens():
    batches = validation_batches(np.arange(100), 8, 4, max_tokens=20)
    assert sum(targets.numel() for _, targets in batches) == 20
