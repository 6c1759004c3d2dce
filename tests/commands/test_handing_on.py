"""`export`, `bundle`, and the files that `check` and `compare` write for others."""

import csv
import io
from xml.etree import ElementTree

import pandas as pd
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from loadtest import cli
from loadtest.analysis.run import analyze
from loadtest.records.read import read_run
from tests.support import builders


def run_folder(path, gap_s=0.03):
    made = [builders.level(builders.closed_loop(1, 12, gap_s=gap_s, seed=r), repeat=r) for r in range(1, 4)]
    return builders.write(builders.run([builders.cell(made, "vllm")]), path)


@pytest.fixture
def run(tmp_path):
    return run_folder(tmp_path / "mine")


def test_requests_go_to_parquet_and_csv_alike(run, tmp_path, capsys):
    for name in ("r.parquet", "r.csv"):
        assert cli.main(["export", str(run), "-o", str(tmp_path / name)]) == 0
        assert capsys.readouterr().out == f"{tmp_path / name}: 36 requests\n"
    frame = pd.read_parquet(tmp_path / "r.parquet")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text())))
    assert [float(row["ttft_s"]) for row in rows] == pytest.approx(list(frame.ttft_s))
    assert list(frame.columns) == list(rows[0])


def test_figures_go_to_openmetrics(run, tmp_path):
    assert cli.main(["export", str(run), "-o", str(tmp_path / "f.prom")]) == 0
    families = {one.name: one for one in text_string_to_metric_families((tmp_path / "f.prom").read_text())}
    (found,) = [one for one in families["loadtest_ttft_s"].samples if one.labels["statistic"] == "p50"]
    (cell,) = analyze(read_run(run)).cells
    assert found.value == cell.levels[0].ttft_s.p50
    assert (found.labels["cell"], found.labels["simulated"]) == (cell.id, "False")
    assert "loadtest_ttft_s_ci95_low" in families


def test_an_unknown_format_is_named(run, tmp_path, capsys):
    assert cli.main(["export", str(run), "-o", str(tmp_path / "r.xlsx")]) == 2
    assert "expected a file that ends with .parquet, .csv, .prom" in capsys.readouterr().err


def test_a_bundle_is_taken_as_the_run(run, tmp_path, capsys):
    assert cli.main(["bundle", str(run), "--redact"]) == 0
    bundle = tmp_path / "mine.loadtest"
    assert capsys.readouterr().out.startswith(f"{bundle}: ")
    said = []
    for one in (run, bundle):
        assert cli.main(["check", str(one), "--require", "ttft_s:p50<2"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert cli.main(["compare", str(run), str(bundle)]) == 0
    assert cli.main(["report", str(bundle)]) == 0
    assert (tmp_path / "mine.html").stat().st_size > 10_000
    assert cli.main(["export", str(bundle), "-o", str(tmp_path / "r.csv")]) == 0


def test_check_and_compare_leave_files_for_ci(run, tmp_path, capsys):
    slow = run_folder(tmp_path / "slow", gap_s=0.04)
    files = ["--junit", str(tmp_path / "j.xml"), "--summary", str(tmp_path / "s.md")]
    assert cli.main(["check", str(run), "--require", "ttft_s:p50<0.1", *files]) == 3
    (suite,) = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert (suite.attrib["tests"], suite.attrib["failures"]) == ("1", "1")
    assert "not met" in (tmp_path / "s.md").read_text()
    assert cli.main(["compare", str(run), str(slow), *files]) == 3
    (suite,) = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert int(suite.attrib["failures"]) > 0
    assert (tmp_path / "s.md").read_text().startswith("### ❌ ")
    assert cli.main(["compare", str(slow), str(run), *files]) == 0
    assert (tmp_path / "s.md").read_text().startswith("### ✅ No significant regression\n")
