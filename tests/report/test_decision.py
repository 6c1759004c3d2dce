"""The decision in words: who is faster, at what concurrency, at what cost."""

from __future__ import annotations

import pytest

from loadtest.metrics.figures import Estimate
from loadtest.metrics.schema import Comparison
from loadtest.report.cells import cells_of
from loadtest.report.decision import (
    CONCURRENCY,
    COST,
    ENGINE,
    Line,
    cost_per_1000_answers,
    decision_lines,
    question_of,
    slo_words,
    verdict_words,
)
from loadtest.report.page import Source
from tests.support import runs
from tests.support.runs import change


def lines(source: Source) -> dict[str, Line]:
    return {line.asks: line for line in decision_lines(source.metrics, source.manifest)}


def judged(source: Source, verdict: str) -> Source:
    return runs.with_comparisons(source, lambda row: change(row, verdict=verdict))


def row(verdict: str) -> Comparison:
    return change(runs.simulated().metrics.comparisons[0], verdict=verdict)


def test_every_sentence_of_the_decision_carries_its_interval() -> None:
    found = lines(runs.simulated())
    assert len(found) == 4
    for line in found.values():
        assert "95 % CI" in line.because or "confidence intervals" in line.because, line


def test_faster_is_said_only_where_comparisons_say_so() -> None:
    assert lines(judged(runs.measured(), "faster"))[ENGINE].answer == "SGLang was faster in 6 of 6 comparisons"
    none = lines(judged(runs.measured(), "no detectable difference"))[ENGINE].answer
    assert none == "No detectable difference in 6 of 6 comparisons"


def test_lost_comparisons_count_for_the_other_engine() -> None:
    assert lines(judged(runs.measured(), "slower"))[ENGINE].answer == "vLLM was faster in 6 of 6 comparisons"


def test_a_simulation_gives_no_verdict_whatever_its_comparisons_say() -> None:
    assert lines(judged(runs.simulated(), "faster"))[ENGINE].answer == "No verdict: simulated run"


def test_what_could_not_be_judged_is_counted_beside_what_could() -> None:
    rows = [row("faster"), row("too few samples"), row("not comparable")]
    assert verdict_words("SGLang", "vLLM", rows) == "SGLang was faster in 1 of 3 comparisons; 2 could not be judged"
    tied = [row("no detectable difference"), row("too few samples")]
    assert verdict_words("a", "b", tied) == "No detectable difference in 1 of 2 comparisons; 1 could not be judged"
    assert verdict_words("a", "b", rows[1:]) == "No verdict in 2 comparisons"


def test_maximum_concurrency_is_that_of_the_cell_that_holds_most() -> None:
    numbers = iter(range(8))
    sample = runs.with_cells(
        runs.simulated(),
        lambda cell: change(
            cell, maximum_concurrency=change(cell.maximum_concurrency, by_slo=next(numbers), ci95=(0, None))
        ),
    )
    line = lines(sample)[CONCURRENCY]
    assert line.answer == "7 within the SLOs"
    assert line.because.startswith(
        "vLLM (simulated), QwQ-32B, 2 GPUs. The confidence intervals are within the SLOs at no level."
    )


def test_no_concurrency_is_promised_where_no_level_meets_the_slos() -> None:
    sample = runs.with_cells(
        runs.simulated(),
        lambda cell: change(
            cell,
            maximum_concurrency=change(cell.maximum_concurrency, by_slo=0, ci95=(0, None), binds="ttft_s:p90<2"),
        ),
    )
    line = lines(sample)[CONCURRENCY]
    assert line.answer == "No level is shown to meet the SLOs"
    assert line.because.startswith("Not met, or too few requests to tell: 90th percentile of time to first token < 2 s.")


def test_without_an_slo_or_a_price_the_decision_says_what_to_give() -> None:
    found = lines(runs.small())
    assert found[CONCURRENCY].answer == "No SLO was set"
    assert "--slo of attach" in found[CONCURRENCY].because
    assert found[COST].answer == "No price was given"
    assert "gpu_hour" in found[COST].because


def test_cost_is_price_times_gpus_over_answers_with_the_interval_turned_round() -> None:
    cell = cells_of(runs.simulated().metrics)[1]
    level = change(cell.levels[0], answers_per_hour=Estimate(100.0, (80.0, 125.0), 9))
    found = cost_per_1000_answers(cell, level, 1.5)
    assert cell.gpus == 2
    assert (found.value, found.ci95) == (30.0, (24.0, 37.5))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("itl_s:mean<0.05", "mean gap between tokens < 0.05 s"),
        ("tokens_per_s_per_user:p50>15", "median tokens/s per user > 15 tokens/s"),
        ("failed_share<0.1", "share of failed requests < 0.1"),
        ("nonsense", "nonsense"),
    ],
)
def test_an_slo_is_said_as_a_person_would(text: str, words: str) -> None:
    assert slo_words(text) == words


def test_question_is_made_of_what_was_asked_for() -> None:
    sample = runs.simulated()
    found = question_of(sample.metrics, sample.manifest)
    assert found == "SGLang or vLLM for QwQ-32B-AWQ and QwQ-32B: which is faster, and up to what concurrency?"
    one = change(sample.metrics, cells=sample.metrics.cells[:1])
    assert question_of(one, sample.manifest) == "How fast does SGLang serve QwQ-32B-AWQ, and up to what concurrency?"


def test_unknown_hardware_is_not_called_a_gpu() -> None:
    cell = change(runs.simulated().metrics.cells[0], model="Qwen/Qwen2.5-0.5B-Instruct", gpu=None)
    assert cells_of(change(runs.simulated().metrics, cells=(cell,)))[0].deployment == "Qwen2.5-0.5B-Instruct"


def test_the_cells_of_a_second_mode_stand_apart_whichever_it_is() -> None:
    metrics = runs.simulated().metrics
    cells = tuple(change(metrics.cells[1], mode=mode) for mode in ("natural", "equal-work"))
    for first, second in (("natural", "equal work"), ("equal-work", "natural stopping")):
        found = cells_of(change(metrics, cells=cells, run=change(metrics.run, mode=first)))
        assert {cell.deployment for cell in found} == {"QwQ-32B-AWQ, 2 GPUs", f"QwQ-32B-AWQ, 2 GPUs, {second}"}
