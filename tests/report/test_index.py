"""The index of a folder of runs."""

from __future__ import annotations

import pytest

from loadtest import cli
from loadtest.report import index
from loadtest.report.page import build_index
from tests.support import pages as sample_metrics


def entry(folder: str, sample: sample_metrics.Sample, *, paged: bool = True) -> index.Entry:
    return index.Entry(folder, sample.metrics, sample.manifest, paged)


def test_newest_run_stands_first_and_each_tells_its_health() -> None:
    old, new = sample_metrics.full_matrix(levels=(1,), deployments=1), sample_metrics.damaged()
    new.manifest["started_unix_s"] += 60
    rows = index.rows([entry("a", old), entry("b", new)])
    assert [row.folder for row in rows] == ["b", "a"]
    assert [row.state for row in rows] == ["fail", "pass"]
    assert [row.simulated for row in rows] == [False, True]
    assert "Completeness: incomplete: interrupted by the user" in rows[0].health
    assert rows[1].link == "./a/report.html"
    assert "Not for a simulation to say" in rows[1].answer


def test_a_run_that_cannot_be_read_is_a_row_that_says_why() -> None:
    (row,) = index.rows([index.Entry("x", {}, {}, paged=False, problem="manifest.json: expected a JSON object")])
    assert (row.link, row.state, row.answer) == ("", "unknown", "manifest.json: expected a JSON object")


def test_a_folder_of_any_name_is_neither_a_scheme_nor_an_element() -> None:
    sample = sample_metrics.hostile()
    (row,) = index.rows([entry("javascript:alert(1)", sample)])
    assert row.link == "./javascript%3Aalert%281%29/report.html"
    page = build_index(sample_metrics.HOSTILE, [entry(sample_metrics.HOSTILE.replace("/", ""), sample)])
    assert "<img" not in page
    assert page.count("<script") == 1


def test_report_of_a_folder_of_runs_writes_its_index(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text('{"name": "a run"}' if name == "one" else "{")
    assert cli.main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == str(tmp_path / "index.html")
    assert "Not analysed yet" in page
    assert "expected a JSON object" in page
    assert str(tmp_path) not in page
