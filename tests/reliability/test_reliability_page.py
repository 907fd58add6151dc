"""docs/reliability.md says which check catches which seeded bug; this holds its table to the lists."""

from pathlib import Path

import test_seeded_bugs
import test_seeded_bugs_in_training
from seeded import name_of

PAGE = Path(__file__).parent.parent.parent / "docs" / "reliability.md"


def test_the_page_lists_every_seeded_bug_with_the_check_that_catches_it():
    bugs = test_seeded_bugs.BUGS + test_seeded_bugs_in_training.BUGS
    rows = [
        f"| {what} | `{module.__name__.rpartition('.')[2]}.py` | `{name_of(check)}` |\n"
        for what, check, module, _, _ in bugs
    ]
    assert len(rows) >= 20
    table = "| mistake | put into | caught by |\n|---|---|---|\n" + "".join(rows)
    assert table in PAGE.read_text(encoding="utf-8"), f"the table must be:\n{table}"
