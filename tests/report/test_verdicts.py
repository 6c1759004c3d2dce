"""What changes do, in words: on the page, in the first sentence, and of a simulation."""

import pytest

from loadtest.metrics.figures import Bounded
from loadtest.metrics.schema import FactorEffect, FactorFigure, FactorLevel
from loadtest.report import verdicts
from loadtest.report.cells import cells_of
from loadtest.report.decision import BASELINE, decision_lines
from loadtest.report.overview import answer_of
from tests.analysis.test_factors import grid
from tests.support import builders, runs


def effect(**changes):
    facts = {
        "factor": "--max-num-seqs", "level": "64", "baseline": "8", "engine": "vllm", "model": "m", "tp": 1, "gpu": "l20",
        "simulated": False, "pairs": (("b", "a"),), "metric": "time_to_final_answer_s", "concurrency": (1, 8),
        "verdict": "faster", "ratio": Bounded(0.95, (0.93, 0.97)), "pair_ratios": (0.95,), "n_starts": 3,
        "by_concurrency": (), "figures": (), "reason": "1 pair of cells, 3 starts each",
    }  # fmt: skip
    return FactorEffect(**(facts | changes))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "5.3 % faster [3.1, 7.5]"),
        ({"simulated": True}, "Predicted: 5.3 % faster [3.1, 7.5]"),
        ({"verdict": "slower", "ratio": Bounded(1.2, (1.1, 1.3))}, "20.0 % slower [10.0, 30.0]"),
        ({"verdict": "equal"}, "Equal (5.3 % faster [3.1, 7.5])"),
        ({"verdict": "one start each", "ratio": Bounded(0.95, None)}, "No verdict from one start each (5.3 % faster)"),
        ({"verdict": "not comparable", "ratio": Bounded(None, None)}, "No verdict: not comparable"),
        ({"metric": "tokens_per_s_per_user", "ratio": Bounded(1.06, (1.04, 1.08))}, "6.0 % faster [4.0, 8.0]"),
    ],
)
def test_a_change_is_a_few_words_with_their_interval(change, words):
    assert verdicts.change_verdict(effect(**change)) == words


def test_what_a_change_rests_on_names_other_metrics_and_where_it_stops_to_pay():
    told = verdicts.change_evidence(
        effect(
            figures=(FactorFigure(metric="output_tokens_per_s", ratio=Bounded(1.06, (1.04, 1.08))),),
            by_concurrency=(
                FactorLevel(concurrency=1, ratio=Bounded(0.8, (0.7, 0.9)), verdict="faster"),
                FactorLevel(concurrency=8, ratio=Bounded(1.2, (1.1, 1.3)), verdict="slower"),
            ),
            pair_ratios=(0.9, 1.0),
        )
    )
    assert "otal output tokens/s +6.0 % [4.0, 8.0]" in told
    assert "By concurrency, 1: 25.0 % faster [11.1, 42.9]; 8: 20.0 % slower [10.0, 30.0]." in told
    assert "Ratios of the pairs: 0.90 to 1.00." in told


def test_the_page_has_a_line_for_each_change_and_a_name_for_each_configuration():
    source = runs.analysed(builders.run(grid()))
    lines = {line.asks: line for line in decision_lines(source.metrics, source.manifest)}
    assert lines["--new on instead of off"].answer.endswith("]")
    assert "% faster [" in lines["--new on instead of off"].answer
    assert "vLLM big=64, new=on is " in lines[BASELINE].answer
    assert "Which engine" not in lines
    assert answer_of(source.metrics, source.manifest).startswith("--new on instead of off is ")
    shown = cells_of(source.metrics)
    assert len({cell.name for cell in shown}) == len({cell.run for cell in shown}) == 4
    assert shown[0].name == "vLLM QwQ-32B-AWQ, 1 GPU, big=8, new=off"
