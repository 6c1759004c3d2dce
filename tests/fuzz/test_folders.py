"""Damaged run folders, as in `make fuzz`: enough to see that it runs, and that it can fail."""

from dataclasses import replace

import pytest

from loadtest.records import read
from tests.fuzz import folders


def test_no_command_breaks_a_promise_on_a_damaged_folder():
    outcomes, broken = folders.fuzz(45, seed=1)
    assert broken == []
    assert min(outcomes["refused"], outcomes["same figures"], outcomes["other figures with a reason"]) >= 3


def test_a_broken_promise_is_seen(monkeypatch):
    """Records that nobody holds against their digests."""
    whole = read.read_level
    monkeypatch.setattr(read, "read_level", lambda *args, **kwargs: replace(whole(*args, **kwargs), damaged=(), torn=()))
    broken = (one for seed in range(1, 7) for one in folders.fuzz(40, seed=seed)[1])  # not every seed hits a figure
    assert any("other figures without a reason" in one for one in broken)


def test_a_hang_is_seen(monkeypatch):
    def spin(_):
        try:
            while True:
                pass
        except OSError:  # as the command line does
            return 1

    monkeypatch.setattr(folders, "LONGEST_S", 0.05)
    monkeypatch.setattr(folders.cli, "main", spin)
    monkeypatch.setattr(folders.signal, "alarm", lambda _: None)
    with pytest.raises(folders.Late):
        folders.asked("analyze", "run")
