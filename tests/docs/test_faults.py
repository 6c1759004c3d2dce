"""The list of faults in the docs: each message that it quotes is one of ours."""

import re
from functools import cache

import pytest

from tests.docs import generate
from tests.support.documents import ROOT

FAULTS = [said for part in ("processes", "input", "servers", "secrets") for said, _ in generate.faults(part)]


@cache
def source():
    """All of the package, and of the tests without their marks, with strings that are split over lines joined."""
    files = [*(ROOT / "loadtest").rglob("*.py"), *(ROOT / "tests").rglob("test_*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return re.sub(r'"\s*\n\s*f?"', "", re.sub(r"@pytest\.mark\.fault\((?s:.*?)\)\n(?=def |@)", "", text))


@pytest.mark.parametrize("said", FAULTS, ids=lambda said: said.partition(":")[0])
def test_what_is_quoted_is_printed(said):
    for quoted in re.findall("`([^`]+)`", said):
        assert quoted in source()


def test_every_mark_is_read():
    marks = sum(
        path.read_text().count("@pytest.mark.fault(")
        for path in (ROOT / "tests").rglob("test_*.py")
        if path.name != "test_faults.py"
    )
    assert len(FAULTS) == marks > 80
