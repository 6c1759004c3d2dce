"""The list of failures in the docs: each test that it names exists, each message that it quotes is one of ours."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = re.sub(r"\n  (?=\S)", " ", (ROOT / "docs/operations.md").read_text(encoding="utf-8"))  # what wrapping has split
LINES = list(re.finditer(r"^- (?P<said>.+) `(?P<file>\S+\.py)::(?P<test>\w+)`$", TEXT, re.MULTILINE))


@cache
def source():
    """All of the package, and of the tests, with strings that are split over lines joined."""
    files = [*(ROOT / "loadtest").rglob("*.py"), *(ROOT / "tests").rglob("test_*.py")]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text(encoding="utf-8") for path in files))


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["said"].partition(":")[0])
def test_a_line_names_a_test_that_exists_and_quotes_what_is_printed(line):
    code = (ROOT / "tests" / line["file"]).read_text(encoding="utf-8")
    assert re.search(rf"^def {line['test']}\(", code, re.MULTILINE)
    for quoted in re.findall("`([^`]+)`", line["said"]):
        assert quoted in source()


def test_every_line_is_read():
    assert len(LINES) == TEXT.count("::")
    assert len(LINES) > 50
