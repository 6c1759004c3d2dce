"""A level while it runs, on terminals of a real size."""

import io

import pytest

from loadtest.records.progress import LevelProgress
from loadtest.report.live import LevelStatus, LiveView, can_be_live, plain_line
from tests.support.terminal import python

STATUS = LevelStatus("vllm_m_tp1", 4, "level 2 of 3", 12, 4, LevelProgress(4, 3, 1, 4, 92.31, 0.4), 30.0, 60.0, 600.0)
SETUP = """
import sys, time
from dataclasses import replace
from loadtest.cli import printable
from loadtest.records.progress import LevelProgress
from loadtest.report.live import LevelStatus, LiveView
from tests.report.test_live import STATUS
view = LiveView(sys.stderr, printable)
view.line("[00:01] vllm_m_tp1: starting")
view.show(STATUS)
"""
WAIT = "input()\n"
END = "view.close()\nprint('the result')\n"


def panel(terminal):
    return [line for line in terminal.lines if "concurrency 4" in line]


def test_a_level_stands_below_the_lines_and_is_gone_at_the_end():
    with python(SETUP + WAIT + "view.line('[00:40] a level has ended')\n" + END) as terminal:
        assert terminal.until(panel)
        assert terminal.lines == [
            "[00:01] vllm_m_tp1: starting",
            "vllm_m_tp1, concurrency 4 (level 2 of 3)",
            "━━━━━━━╸━━━━━━━━━━━━━━━━━━━━━━  3 of 12 requests  4 running  1 failed",
            "tokens/s 92.3 (23.1 per user)   TTFT 0.40 s   warm-up 4 of 4",
            "0:30 in this level, about 60 s left; study: about 10 min left",
        ]
        assert not terminal.screen.cursor.hidden
        terminal.press(b"\n")
        assert terminal.end() == 0
        assert [line for line in terminal.lines if line] == [
            "[00:01] vllm_m_tp1: starting",
            "[00:40] a level has ended",
            "the result",
        ]


@pytest.mark.parametrize("columns", [24, 40, 80])
def test_no_line_of_it_is_wrapped(columns):
    with python(SETUP + WAIT, columns=columns) as terminal:
        assert terminal.until(lambda seen: any("in this" in line for line in seen.lines))
        assert len(terminal.lines) == 4 + (2 if columns < 28 else 1)


def test_a_long_line_that_stays_is_wrapped_between_words():
    long = "view.line('[00:02] refused: it does not fit')\n"
    with python(SETUP + long + END, columns=30) as terminal:
        assert terminal.end() == 0
        assert terminal.lines[1:3] == ["[00:02] refused: it does not", "fit"]


def test_a_resize_redraws_one_level_in_the_new_width():
    with python(SETUP + WAIT + "view.show(STATUS)\ntime.sleep(0.1)\n" + WAIT, columns=100) as terminal:
        assert terminal.until(panel)
        terminal.resize(50)
        terminal.press(b"\n")
        assert terminal.until(lambda seen: any(line.endswith("…") for line in seen.lines))
        assert len(panel(terminal)) == 1


def test_colour_only_where_it_is_wanted():
    with python(SETUP + END) as terminal:
        assert terminal.end() == 0
        assert b"\x1b[1;31m1 failed" in terminal.raw
    with python(SETUP + END, environment={"NO_COLOR": "1"}) as terminal:
        assert terminal.end() == 0
        assert b"1 failed" in terminal.raw
        assert b"\x1b[1;31m" not in terminal.raw


def test_what_a_server_names_itself_cannot_steer_the_terminal():
    hostile = "view.show(replace(STATUS, cell='m\\x1b]0;owned\\x07'))\nview.line('a\\x1b[2Jb')\n"
    with python(SETUP + hostile + END) as terminal:
        assert terminal.end() == 0
        assert b"\x1b]0;" not in terminal.raw
        assert b"\x1b[2J" not in terminal.raw
        assert b"a\\x1b[2Jb" in terminal.raw


def test_a_line_that_takes_long_is_told_with_its_time():
    wait = "view.show(None)\nview._said_s -= 65\nview.show(None)\n"
    with python(SETUP + wait + WAIT) as terminal:
        assert terminal.until(lambda seen: any("(1:05)" in line for line in seen.lines))


def test_a_slow_start_is_told_before_the_first_line():
    start = SETUP.partition("view.line")[0] + "view._said_s -= 3\nview.show(None)\n"
    with python(start + WAIT) as terminal:
        assert terminal.until(lambda seen: seen.lines == ["starting (0:03)"])


class Tty(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "live"),
    [
        (Tty(), {}, True),
        (Tty(), {"TERM": "dumb"}, False),
        (Tty(), {"TERM": ""}, False),
        (Tty(), {"CI": "true"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_where_it_is_live(stream, environment, live, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert can_be_live(stream) is live


def test_a_level_that_ends_by_the_clock_and_one_of_which_nothing_is_known():
    timed = LevelStatus("c", 8, "level 1 of 1", None, 0, LevelProgress(0, 5, 0, 8, 10.0, None), 20.0, 40.0, 40.0)
    assert plain_line(timed) == "c at  8  5 requests, 8 running, 10.0 tokens/s, about 40 s left"
    start = LevelStatus("c", 8, "level 1 of 1", 16, 8, LevelProgress(), 0.0, None, None)
    assert plain_line(start) == "c at  8  0 of 16 requests, warm-up 0 of 8"


def test_a_stream_without_a_terminal_is_not_broken_by_it():
    stream = io.StringIO()
    view = LiveView(stream, str)
    view.line("a line")
    view.show(STATUS)
    view.close()
    assert stream.getvalue().startswith("a line\n")
