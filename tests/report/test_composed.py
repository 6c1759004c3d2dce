"""What is composed of bursts, as page and terminal show it."""

import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from loadtest.analysis.run import analyze
from loadtest.metrics.level_schema import ConditionCheck
from loadtest.records.manifest import Prices
from loadtest.records.read import read_run
from loadtest.report.cells import ShownCell, cells_of, points
from loadtest.report.composed import composed_lines, composed_table, condition_lines
from loadtest.report.decision import decision_lines
from loadtest.report.page import Source, run_page
from loadtest.report.terminal import decision_text
from loadtest.study import fast_forward
from loadtest.study.schema import Cell, Study
from tests.support import runs

CELLS = tuple(
    Cell(engine=engine, model="qwq-32b-awq", gpu="l20", args=("--length-scale", "0.05"))
    for engine in ("sglang-sim", "vllm-sim")
)
STUDY = Study(
    name="s", workload="math:n=16", cells=CELLS, levels=(1, 2), mode="decision", natural_users=2, natural_prompts=16
)


@pytest.fixture(scope="module")
def run():
    with tempfile.TemporaryDirectory() as folder:
        assert fast_forward.simulate_study(STUDY, Path(folder) / "run", say=lambda _: None) == ()
        return read_run(Path(folder) / "run")


@pytest.fixture(scope="module")
def metrics(run):
    return analyze(run)


def test_the_table_has_a_row_for_each_cell_and_level(metrics):
    table = composed_table(cells_of(metrics))
    assert [row[:3] for row in table.rows] == [
        (name, level, "1") for name in ("SGLang-sim QwQ-32B-AWQ, 1 GPU", "vLLM-sim QwQ-32B-AWQ, 1 GPU") for level in "12"
    ]
    assert "All conditions hold." in table.notes
    assert composed_table(cells_of(runs.simulated().metrics)) is None


def test_page_and_terminal_show_it_as_composed(run, metrics):
    page = run_page(Source(metrics, run.manifest, {}, {}))
    assert "Composed of bursts" in page
    text = decision_text(metrics, run.manifest, 120)
    assert "composed of bursts" in text
    assert any("composed" in line.because for line in decision_lines(metrics, run.manifest))


def test_a_broken_condition_says_which_and_by_how_much(metrics):
    broken = ConditionCheck(name="no preemption", status="broken", value=3.0, limit=0.0, reason="3 preemptions")
    first, *rest = metrics.cells
    changed = msgspec.structs.replace(metrics, cells=(msgspec.structs.replace(first, conditions=(broken,)), *rest))
    (line,) = condition_lines(cells_of(changed))
    assert line == "Broken: SGLang-sim QwQ-32B-AWQ, 1 GPU: no preemption: 3 preemptions."
    assert line in composed_lines(cells_of(changed))


def test_a_decision_prices_its_answers_and_names_what_meets_the_slos(run):
    """By composed levels: the natural runs alone would say neither."""
    slo, prices = ("time_to_final_answer_s:p50<600", "ttft_s:p90<60"), Prices(gpu_hour=2.0, currency="USD")
    asked = replace(run, manifest=msgspec.structs.replace(run.manifest, slo=slo, prices=prices))
    found = {line.asks: line for line in decision_lines(analyze(asked), asked.manifest)}
    assert "composed" in found["Cost of 1,000 answers"].because
    assert found["Maximum concurrency"].answer.startswith("2 within the SLOs")
    assert "Composed of bursts at 1 and 2." in found["Maximum concurrency"].because
    first, *_ = analyze(asked).cells
    level = first.composed[1]
    hourly = level.estimate("answers_per_hour").value
    assert hourly == pytest.approx(3600 * 2 / level.time_to_final_answer_s.mean.value)


def test_nothing_composed_is_shown_where_a_condition_is_broken(metrics):
    broken = ConditionCheck(name="no preemption", status="broken", value=3.0, limit=0.0, reason="3 preemptions")
    first = msgspec.structs.replace(metrics.cells[0], conditions=(broken,))
    assert first.usable == ()
    assert {point.composed for point in points(ShownCell(first))} == {None}
