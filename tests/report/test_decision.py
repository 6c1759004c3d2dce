"""The decision in words: who is faster, at what concurrency, at what cost."""

from __future__ import annotations

import pytest

from loadtest.metrics.figures import Bounded, Estimate
from loadtest.metrics.schema import OutputLengths
from loadtest.report.cells import cells_of
from loadtest.report.decision import (
    CONCURRENCY,
    COST,
    ENGINE,
    cost_per_1000_answers,
    decision_lines,
    question_of,
    slo_words,
)
from tests.support import runs
from tests.support.runs import change

SLOWER = Bounded(1.051, (1.029, 1.074))


def lines(source):
    return {line.asks: line for line in decision_lines(source.metrics, source.manifest)}


def judged(source, *verdicts, ratio=SLOWER):
    """The same run with these verdicts of its pairs, in turn; pairs without one stay as they are."""
    given = dict(enumerate(verdicts))
    found = [one for one in source.metrics.decisions if one.ratio.known]
    changed = [change(one, verdict=given.get(i, verdicts[-1]), ratio=ratio) for i, one in enumerate(found)]
    return runs.with_metrics(source, decisions=tuple(changed))


def test_every_sentence_of_the_decision_carries_its_interval():
    found = lines(runs.simulated())
    assert len(found) == 4
    for line in found.values():
        assert "95 % CI" in line.because or "confidence intervals" in line.because or " [" in line.because, line


def test_one_pair_is_one_sentence_with_the_interval_of_its_verdict():
    line = lines(judged(runs.small(), "slower"))[ENGINE]
    assert line.answer == "vLLM is 5.1 % faster [2.9, 7.4]"
    assert line.because.startswith("Time to final answer, mean over levels, at equal length, for these prompts. ")
    assert "3 starts each; starts vary by" in line.because


def test_what_is_faster_is_the_side_whose_time_is_less():
    quick = Bounded(1 / 1.051, (1 / 1.074, 1 / 1.029))
    assert lines(judged(runs.small(), "faster", ratio=quick))[ENGINE].answer == "SGLang is 5.1 % faster [2.9, 7.4]"


def test_engines_that_think_longer_are_named():
    def with_lengths(verdict):
        lengths = OutputLengths(ratio=Bounded(1.2, (1.1, 1.3)), verdict=verdict, n=9, reason="")
        sample = runs.with_decisions(judged(runs.small(), "slower"), lambda one: change(one, output_tokens=lengths))
        return lines(sample)[ENGINE].because

    assert "vLLM is 5.1 % faster [2.9, 7.4]; outputs of SGLang have more tokens (1.20 [1.10, 1.30])" in with_lengths("more")
    assert "; outputs alike (1.20 [1.10, 1.30])" in with_lengths("no detectable difference")


def test_of_several_pairs_the_verdicts_are_counted():
    line = lines(judged(runs.measured(), "slower", "slower", "equal"))[ENGINE]
    assert line.answer == "vLLM is faster in 2 of 3 pairs; equal within 5 % in 1"
    assert "QwQ-32B-AWQ, 1 GPU: vLLM is 5.1 % faster [2.9, 7.4]" in line.because
    tied = lines(judged(runs.measured(), "equal"))[ENGINE]
    assert tied.answer == "Equal within 5 % in 3 of 3 pairs"


@pytest.mark.parametrize(
    ("verdict", "answer"),
    [
        ("equal", "SGLang and vLLM are equal within 5 % (vLLM 5.1 % faster [2.9, 7.4])"),
        ("undecided", "Undecided: vLLM seems 5.1 % faster [2.9, 7.4]"),
        ("one start each", "No verdict from one start each (vLLM was 5.1 % faster)"),
    ],
)
def test_what_is_not_decided_is_not_called_faster(verdict, answer):
    ratio = Bounded(1.051, None) if verdict == "one start each" else SLOWER
    assert lines(judged(runs.small(), verdict, ratio=ratio))[ENGINE].answer == answer


def test_without_a_ratio_the_reason_is_given():
    sample = runs.with_decisions(
        runs.small(), lambda one: change(one, verdict="not comparable", ratio=Bounded(None, None), reason="different top_k")
    )
    line = lines(sample)[ENGINE]
    assert (line.answer, line.because) == ("No verdict", "No pair of cells could be compared: different top_k.")


def test_a_simulation_gives_no_verdict_whatever_its_pairs_say():
    assert lines(judged(runs.simulated(), "faster"))[ENGINE].answer == "No verdict: simulated run"


def test_maximum_concurrency_is_that_of_the_cell_that_holds_most():
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


def test_no_concurrency_is_promised_where_no_level_meets_the_slos():
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


def test_without_an_slo_or_a_price_the_decision_says_what_to_give():
    found = lines(runs.small())
    assert found[CONCURRENCY].answer == "No SLO was set"
    assert "--slo of attach" in found[CONCURRENCY].because
    assert found[COST].answer == "No price was given"
    assert "gpu_hour" in found[COST].because


def test_cost_is_price_times_gpus_over_answers_with_the_interval_turned_round():
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
def test_an_slo_is_said_as_a_person_would(text, words):
    assert slo_words(text) == words


def test_question_is_made_of_what_was_asked_for():
    sample = runs.simulated()
    found = question_of(sample.metrics, sample.manifest)
    assert found == "SGLang or vLLM for QwQ-32B-AWQ and QwQ-32B: which is faster, and up to what concurrency?"
    one = change(sample.metrics, cells=sample.metrics.cells[:1])
    assert question_of(one, sample.manifest) == "How fast does SGLang serve QwQ-32B-AWQ, and up to what concurrency?"


def test_unknown_hardware_is_not_called_a_gpu():
    cell = change(runs.simulated().metrics.cells[0], model="Qwen/Qwen2.5-0.5B-Instruct", gpu=None)
    assert cells_of(change(runs.simulated().metrics, cells=(cell,)))[0].deployment == "Qwen2.5-0.5B-Instruct"


def test_the_cells_of_a_second_mode_stand_apart_whichever_it_is():
    metrics = runs.simulated().metrics
    cells = tuple(change(metrics.cells[1], mode=mode) for mode in ("natural", "equal-work"))
    for first, second in (("natural", "equal work"), ("equal-work", "natural stopping")):
        found = cells_of(change(metrics, cells=cells, run=change(metrics.run, mode=first)))
        assert {cell.deployment for cell in found} == {"QwQ-32B-AWQ, 2 GPUs", f"QwQ-32B-AWQ, 2 GPUs, {second}"}
