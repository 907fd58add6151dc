import random
from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gptmini.evaluation import memorization
from gptmini.evaluation.memorization import copied_fraction, longest_shared_run


def pieces(text: bytes, sizes: list[int]) -> list[bytes]:
    """The text cut into blocks of these sizes, again and again."""
    blocks, start, i = [], 0, 0
    while start < len(text):
        blocks.append(text[start : start + sizes[i % len(sizes)]])
        start, i = start + sizes[i % len(sizes)], i + 1
    return blocks


letters = st.text("ab", max_size=30).map(str.encode)
sizes = st.lists(st.integers(1, 20), min_size=1, max_size=3)


@given(text=letters, other=letters, sizes=sizes)
@example(text=b"", other=b"a", sizes=[1])
@example(text=b"a", other=b"", sizes=[1])
def test_the_longest_shared_run_is_the_longest(text, other, sizes):
    runs = {text[a:b] for a, b in combinations(range(len(text) + 1), 2) if text[a:b] in other}
    found = longest_shared_run(text, pieces(other, sizes))
    assert len(found) == max(map(len, runs), default=0)
    assert found.encode() in text
    assert found.encode() in other


def test_a_shared_run_is_found_in_a_long_text_across_its_blocks():
    noise = bytes(random.Random(1).choices(range(97, 123), k=200_000))
    text = b"A" + noise[99_000:101_000] + b"B" + noise[5:400]
    assert longest_shared_run(text, pieces(noise, [1000])).encode() == noise[99_000:101_000]


def test_a_shared_run_is_counted_in_whole_characters():
    assert longest_shared_run("xé狐".encode(), ["é狗".encode()]) == "é"


@given(text=letters, other=letters, sizes=sizes, run=st.integers(1, 8))
def test_the_copied_fraction_is_that_of_all_long_runs(text, other, sizes, run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memorization, "COPIED_BYTES", run)
        found = copied_fraction(text, pieces(other, sizes))
    copied = {
        place
        for start in range(len(text) - run + 1)
        if text[start : start + run] in other
        for place in range(start, start + run)
    }
    assert found == (len(copied) / len(text) if text else 0)
