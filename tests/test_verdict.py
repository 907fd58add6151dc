"""What the numbers of a run say in words, for each case."""

import pytest

from gptmini.evaluation.verdict import describe_bits, describe_copying, describe_trend


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (1.5, ": better than gzip (3.10), xz (2.50) and 5-gram (2.40)"),
        (2.45, ": better than gzip (3.10) and xz (2.50), worse than 5-gram (2.40)"),
        (2.501, ": better than gzip (3.10), as good as xz (2.50), worse than 5-gram (2.40)"),
        (4.0, ": worse than gzip (3.10), xz (2.50) and 5-gram (2.40)"),
    ],
)
def test_fewer_bits_than_a_baseline_are_better(bits, words):
    baselines = {"gzip": 3.1, "xz": 2.5, "5-gram": 2.4}
    assert describe_bits(bits, baselines) == f"{bits:.2f} bits per byte of validation text{words}"


def test_without_baselines_there_is_only_the_number():
    assert describe_bits(2.0, {}) == "2.00 bits per byte of validation text"


@pytest.mark.parametrize(
    ("losses", "start"),
    [
        ([3.0, 2.5], "Too few evaluations"),
        ([3.0, 2.5, 2.2, 2.0], "Its validation loss was still falling, by 9% over the last quarter"),
        ([3.0, 2.5, 2.0, 1.99], "Its validation loss has levelled off: -0.5% over the last quarter"),
        ([3.0, 2.5, 2.0, 2.01], "Its validation loss has levelled off: +0.5% over the last quarter"),
        ([3.0, 2.0, 2.2, 2.4], "Its validation loss was lowest at step 200, then rose by 20%"),
    ],
)
def test_the_trend_is_that_of_the_last_quarter_and_of_the_best(losses, start):
    steps = [(100 * number, loss) for number, loss in enumerate(losses, start=1)]
    assert describe_trend(steps).startswith(start)


def test_evaluations_at_uneven_steps_are_compared_by_their_steps():
    # Of 1,000 steps the last quarter begins at 750.
    assert "by 10%" in describe_trend([(10, 4.0), (750, 2.0), (900, 1.9), (1000, 1.8)])
    assert "by 50%" in describe_trend([(900, 4.0), (950, 3.0), (1000, 2.0)])  # the first there is


@pytest.mark.parametrize(
    ("sample", "validation", "start"),
    [
        (0.92, 0.02, "Memorized: 92% of its newest sample"),
        (0.3, 0.02, "Memorized in part: 30% of its newest sample"),
        (0.3, 0.25, "Not memorized: 30% of its newest sample"),
        (0.0, 0.0, "Not memorized: 0% of its newest sample"),
        (
            1.0,
            0.95,
            "The text repeats itself, so what is memorized cannot be told: 100% of its newest sample",
        ),
    ],
)
def test_a_sample_that_copies_more_than_the_validation_text_does_is_memorized(sample, validation, start):
    assert describe_copying(sample, validation).startswith(start)
