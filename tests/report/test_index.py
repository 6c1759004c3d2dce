"""The index of a folder of runs."""

from __future__ import annotations

from dataclasses import replace

from loadtest import cli
from loadtest.report.index import Entry, index_answer, index_badge, index_charts, index_rows
from loadtest.report.page import index_page
from tests.support import runs
from tests.support.runs import HOSTILE, change


def entry(folder, source):
    return Entry(folder, source.metrics, source.manifest, paged=True)


def test_newest_run_stands_first_and_each_tells_its_health():
    old, new = runs.simulated(), runs.damaged()
    later = replace(new, manifest=change(new.manifest, started_unix_s=(old.manifest.started_unix_s or 0.0) + 60))
    rows = index_rows([entry("a", old), entry("b", later)])
    assert [row.folder for row in rows] == ["b", "a"]
    assert [row.state for row in rows] == ["fail", "pass"]
    assert [row.simulated for row in rows] == [False, True]
    assert [row.engines for row in rows] == ["SGLang, vLLM", "SGLang, vLLM"]
    assert rows[0].badge.labels == ("doubtful", "incomplete")
    place = "sglang_qwq-32b-awq_tp1 at concurrency 4"
    assert rows[0].badge.words == f"Load generator: the event loop woke up to 0.31 s late ({place})."
    assert rows[1].badge.labels == ("simulated",)
    assert rows[1].link == "./a/report.html"
    assert rows[1].answer.startswith("Simulated, so no verdict between SGLang and vLLM; ")
    assert [row.number for row in rows] == [2, 1]
    assert index_answer(rows).startswith("Newest run, qwq-32b on Ada GPUs: so far: SGLang and vLLM are equal within 5 % ")
    assert index_badge(rows).words == "2 runs: 1 doubtful, 1 incomplete, 1 simulated."


def test_charts_of_an_index_have_a_point_for_each_run_and_engine():
    sample = runs.simulated()
    speed, times = index_charts([entry("a", sample), entry("b", sample)])
    assert [row[:2] for row in speed.table.rows] == [
        ("1", "SGLang-sim QwQ-32B-AWQ, 2 GPUs"), ("1", "vLLM-sim QwQ-32B-AWQ, 2 GPUs"),
        ("2", "SGLang-sim QwQ-32B-AWQ, 2 GPUs"), ("2", "vLLM-sim QwQ-32B-AWQ, 2 GPUs"),
    ]  # fmt: skip
    assert "simulated" in times.title
    assert index_charts([Entry("x", None, None, paged=False)]) == ()


def test_a_run_that_cannot_be_read_is_a_row_that_says_why():
    (row,) = index_rows([Entry("x", None, None, paged=False, problem="manifest.json: expected a JSON object")])
    assert (row.link, row.state, row.answer) == ("", "unknown", "manifest.json: expected a JSON object")


def test_a_folder_of_any_name_is_neither_a_scheme_nor_an_element():
    sample = runs.hostile()
    (row,) = index_rows([entry("javascript:alert(1)", sample)])
    assert row.link == "./javascript%3Aalert%281%29/report.html"
    page = index_page(HOSTILE, [entry(HOSTILE.replace("/", ""), sample)])
    assert "<img" not in page
    assert page.count("<script") == 1


def test_report_of_a_folder_of_runs_writes_its_index(tmp_path, capsys):
    for name, manifest in (("one", '{"schema_version": 1, "run_id": "r", "name": "a run"}'), ("two", "{"), ("old", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(manifest)
    (tmp_path / "old" / "manifest.json").write_text((tmp_path / "one" / "manifest.json").read_text())
    (tmp_path / "old" / "metrics.json").write_text('{"schema_version": 1, "run_id": 7}')
    assert cli.main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == str(tmp_path / "index.html")
    assert "Not analysed yet" in page
    assert "expected a JSON object" in page
    assert "metrics.json: run_id: expected" in page
    assert str(tmp_path) not in page
