"""The numbers of a run in words: better than compressors or not, memorized or not, still falling or not."""

from collections.abc import Mapping, Sequence

LEVEL = 0.01  # a change of the loss by less than 1 % counts as none
COPIED, PARTLY_COPIED = 0.5, 0.1  # fractions of a sample beyond those of the validation text


def describe_bits(bits_per_byte: float, baselines: Mapping[str, float]) -> str:
    """Whether a model needs fewer bits per byte of its validation text than each baseline does.

    >>> describe_bits(2.1, {"gzip": 3.21, "xz": 2.89, "5-gram": 1.98})
    '2.10 bits per byte of validation text: better than gzip (3.21) and xz (2.89), worse than 5-gram (1.98)'
    """
    bits = f"{bits_per_byte:.2f}"
    groups: dict[str, list[str]] = {"better than": [], "as good as": [], "worse than": []}
    for name, value in baselines.items():
        number = f"{value:.2f}"
        word = "as good as" if number == bits else "better than" if bits_per_byte < value else "worse than"
        groups[word].append(f"{name} ({number})")
    parts = [f"{word} {_join(names)}" for word, names in groups.items() if names]
    return f"{bits} bits per byte of validation text{': ' if parts else ''}{', '.join(parts)}"


def describe_trend(losses: Sequence[tuple[int, float]]) -> str:
    """Whether the validation loss was still falling at the end; `losses` are (step, loss) in order of steps.

    >>> describe_trend([(100, 3.0), (200, 2.5), (300, 2.2), (400, 2.0)])
    'Its validation loss was still falling, by 9% over the last quarter of the steps: more steps would help.'
    """
    if len(losses) < 3:
        return "Too few evaluations to say whether its validation loss was still falling."
    last_step, last = losses[-1]
    best, best_step = min((loss, step) for step, loss in losses)
    if last > best * (1 + LEVEL):
        return (
            f"Its validation loss was lowest at step {best_step:,}, then rose by {last / best - 1:.0%}: "
            "more steps do not help."
        )
    before = [loss for step, loss in losses if step <= 0.75 * last_step] or [losses[0][1]]
    change = last / before[-1] - 1
    if change < -LEVEL:
        return (
            f"Its validation loss was still falling, by {-change:.0%} over the last quarter of the steps: "
            "more steps would help."
        )
    return f"Its validation loss has levelled off: {change:+.1%} over the last quarter of the steps."


def describe_copying(sample: float, validation: float) -> str:
    """Whether a model has memorized its training text, by how much of a sample, and for comparison of the
    validation text, stands word for word in it (fractions).

    >>> describe_copying(0.92, 0.02)
    'Memorized: 92% of its newest sample stands in the training text word for word (of validation text, 2%).'
    """
    numbers = f"{sample:.0%} of its newest sample stands in the training text word for word"
    numbers += f" (of validation text, {validation:.0%})."
    if validation > COPIED:
        return f"The text repeats itself, so what is memorized cannot be told: {numbers}"
    excess = sample - validation
    extent = (
        "Memorized" if excess > COPIED else "Memorized in part" if excess > PARTLY_COPIED else "Not memorized"
    )
    return f"{extent}: {numbers}"


def _join(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
