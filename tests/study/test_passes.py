"""What is told of a pass while it runs."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from loadtest.records.progress import LevelProgress
from loadtest.study import estimate, passes
from loadtest.study.execution import Audience
from loadtest.study.schema import AskedPass, Cell, Study
from loadtest.workload.contract import Contract
from tests.study.test_estimate import WORKLOAD

CELL = Cell(engine="other", model="m", base_url="http://127.0.0.1:9")
STUDY = Study(name="s", workload="math", cells=(CELL,), levels=(1, 4), repeats=2)
ASKED = AskedPass(concurrency=4, requests=8, warmup_requests=1)


@pytest.fixture
def seen(monkeypatch):
    """The clock that the teller reads, what is watched, and the details."""

    class Seen:
        now_s, statuses, details = 100.0, [], []

        def monotonic(self):
            return self.now_s

    made = Seen()
    made.statuses, made.details = [], []
    monkeypatch.setattr(passes, "time", made)
    return made


def teller(seen, study=STUDY, log=Path("absent.log")):
    audience = Audience(seen.statuses.append, seen.details.append)
    remaining = estimate.Remaining(study, WORKLOAD, Contract())
    execution = SimpleNamespace(study=study, remaining=remaining, audience=audience)
    return passes._Teller(execution, CELL, ASKED, 1, log)


def test_nothing_is_foreseen_until_a_request_has_ended(seen):
    tell = teller(seen)
    tell(LevelProgress())
    seen.now_s += 60.0
    tell(LevelProgress(warmups=4, in_flight=4))
    start, middle = seen.statuses
    assert (start.elapsed_s, start.level_left_s, start.study_left_s) == (0.0, None, None)
    assert (middle.place, middle.asked, middle.warmups_asked) == ("level 2 of 2, repeat 1 of 2", 8, 4)
    assert middle.level_left_s == pytest.approx(60.0)  # four of twelve have ended, four are half done
    assert middle.study_left_s == pytest.approx(60.0 + 3 * 120.0)  # three passes more, at its pace


@pytest.mark.parametrize("of", [{"duration_s": 90.0}, {"scenario": "open_loop", "scenario_options": {"rate": 8 / 90}}])
def test_what_the_clock_ends_is_told_by_the_clock(of, seen):
    tell = teller(seen, replace(STUDY, **of))
    seen.now_s += 30.0
    tell(LevelProgress(requests=1))
    assert seen.statuses[0].level_left_s == pytest.approx(60.0)


def test_locusts_log_is_told_line_by_line_and_the_end_too(seen, tmp_path):
    log = tmp_path / "locust.log"
    tell = teller(seen, log=log)
    tell(LevelProgress())
    log.write_bytes(b"one\nha")
    tell(LevelProgress())
    assert seen.details == ["locust: one"]
    log.write_bytes(b"one\nhalf \xff\n")
    tell.end()
    assert seen.details == ["locust: one", "locust: half \ufffd"]
    assert seen.statuses[-1] is None
