"""The table of faults in the docs is as true as the tests that it names: each exists, each quoted message is one of ours."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/faults.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and "::" in line
]


@cache
def source() -> str:
    """All of the package, and of the tests, with strings that are split over lines joined."""
    files = [*(ROOT / "loadtest").rglob("*.py"), *(ROOT / "tests").rglob("test_*.py")]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text(encoding="utf-8") for path in files))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_a_test_that_exists_and_quotes_what_is_said(row):
    _, seen, _, test = row
    file, name = re.fullmatch(r"`(.+)::(.+)`", test).groups()
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE)
    for quoted in re.findall("`([^`]+)`", seen):
        assert quoted in source() or "resume" in quoted


def test_the_table_can_be_read():
    assert len(ROWS) > 50
    assert all(len(row) == 4 for row in ROWS)
