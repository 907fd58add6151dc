import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gptmini.data.shuffle import permute


@given(size=st.integers(1, 5000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000))
def test_a_permutation_hits_every_index_once(size, seed, epoch):
    assert sorted(permute(np.arange(size), size, (seed, epoch)).tolist()) == list(range(size))


def test_permutations_differ_between_seeds_and_epochs_and_are_pinned():
    orders = {tuple(permute(np.arange(50), 50, key).tolist()) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert len(orders) == 4
    assert tuple(range(50)) not in orders
    # the data order is part of what a resumed run relies on: it must not change between versions
    assert permute(np.arange(6), 6, (0, 0)).tolist() == [4, 0, 1, 3, 5, 2]
