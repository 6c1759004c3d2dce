"""The entrance of a page: badge, answer and the row of each configuration."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtest.metrics.figures import Bounded, unknown
from loadtest.metrics.level_schema import ComposedLevel, ComposedTimes, TokenArrivals
from loadtest.metrics.schema import ConcurrencySearch
from loadtest.records.manifest import Prices
from loadtest.report.cells import Point, best_cell, cells_of, headline
from loadtest.report.checklist import Check
from loadtest.report.decision import Price
from loadtest.report.overview import answer_of, badge_of, configurations, cost_per_million_tokens, overview_of
from loadtest.report.page import run_page
from loadtest.report.tables import burst_notes
from loadtest.report.terminal import decision_text
from tests.support import runs
from tests.support.runs import change

SOUND, FAILED, OPEN = (
    Check("Contract", "pass", ""), Check("Load generator", "fail", "late; use --workers"), Check("Equal work", "unknown", "")
)  # fmt: skip
TORN = Check("Completeness", "fail", "incomplete: interrupted by the user")


@pytest.mark.parametrize(
    ("checks", "labels", "words"),
    [
        ((SOUND,), ("sound",), "Passed: contract."),
        ((SOUND, OPEN), ("partly checked",), "Not checked: equal work."),
        ((SOUND, TORN), ("incomplete",), "interrupted by the user"),
        ((FAILED, SOUND), ("doubtful",), "Load generator: late."),
        ((FAILED, TORN), ("doubtful", "incomplete"), "Load generator: late."),
    ],
)
def test_badge_is_the_worst_of_the_checks_with_its_reason(checks, labels, words):
    badge = badge_of(runs.small().metrics, checks)
    assert (badge.labels, badge.words) == (labels, words)


def test_simulated_run_says_so_before_anything_else():
    metrics = runs.simulated().metrics
    assert badge_of(metrics, (SOUND,)).labels == ("simulated",)
    assert badge_of(metrics, (FAILED,)).labels == ("simulated", "doubtful")
    assert answer_of(metrics, runs.simulated().manifest).startswith(
        "Simulated, so no verdict between SGLang and vLLM; QwQ-32B-AWQ on 2 GPUs serves "
    )


def test_answer_of_one_engine_without_slos_is_its_speed_at_the_highest_concurrency():
    source = runs.small()
    alone = change(source.metrics, cells=source.metrics.cells[:1], decisions=(), comparisons=())
    level = alone.cells[0].levels[-1]
    assert answer_of(alone, source.manifest).startswith("SGLang with QwQ-32B-AWQ on 1 GPU gives 2 users ")
    assert f"{level.output_tokens_per_s.value:.1f} tokens/s in total" in answer_of(alone, source.manifest)


def bursty(level):
    rates = {"whole_answer_tokens_per_s": level.tokens_per_s_per_user, "between_arrivals_tokens_per_s": level.ttft_s}
    return change(level, arrivals=TokenArrivals(n=30, with_others_share=0.62, p99_tokens=20.0, bursty=True, **rates))


def test_tokens_that_come_in_bursts_are_said_beside_both_rates():
    source = runs.with_levels(runs.small(), bursty)
    alone = change(source.metrics, cells=source.metrics.cells[:1], decisions=(), comparisons=())
    assert " tokens/s each over the whole answer" in answer_of(alone, source.manifest)
    (note,) = burst_notes(cells_of(alone))
    assert "62 % of the tokens came with others, p99 20.0 at once" in note
    assert "tokens/s over the whole answer, " in note
    assert note.split(":")[0] in " ".join(decision_text(alone, source.manifest, 120).split())
    assert "Tokens came in bursts" in run_page(runs.with_metrics(source, cells=alone.cells))


def test_a_total_that_is_not_known_is_left_out_of_the_answer_and_explained_below_the_table():
    source = runs.with_levels(runs.small(), lambda level: change(level, output_tokens_per_s=unknown("no steady window")))
    assert "in total" not in answer_of(source.metrics, source.manifest)
    assert "No total tokens/s: no steady window." in overview_of(source.metrics, source.manifest).notes[0]


def test_headline_is_the_highest_level_within_the_slos_the_lowest_where_none_is():
    cell = cells_of(runs.simulated().metrics)[0]

    def at(within):
        limit = change(cell.figures.maximum_concurrency, by_slo=within)
        (found,) = cells_of(change(runs.simulated().metrics, cells=(change(cell.figures, maximum_concurrency=limit),)))
        return headline(found).concurrency

    assert [at(4), at(1), at(0), at(None)] == [4, 1, 1, 4]


def test_best_cell_has_the_shortest_wait_among_those_of_the_same_concurrency():
    cells = [cell for cell in cells_of(runs.simulated().metrics) if cell.levels]
    waits = {cell.id: headline(cell).level.time_to_final_answer_s.p50 for cell in cells}
    assert len({cell.figures.maximum_concurrency.by_slo for cell in cells}) == 1
    assert waits[best_cell(cells).id] == min(waits.values())


def test_overview_has_a_row_for_each_cell_engines_of_a_deployment_together():
    source = runs.simulated()
    table = overview_of(source.metrics, source.manifest)
    assert [row.name for row in table.rows[:3]] == [
        "SGLang-sim QwQ-32B-AWQ, 1 GPU", "vLLM-sim QwQ-32B-AWQ, 1 GPU", "SGLang-sim QwQ-32B-AWQ, 2 GPUs",
    ]  # fmt: skip
    assert {len(row.figures) for row in table.rows if not row.status} == {len(table.head)} == {11}
    assert sum(columns for _, columns in table.groups) == len(table.head)
    refused = next(row for row in table.rows if row.status)
    assert refused.status.startswith("refused: does not fit")
    assert refused.figures == ()


def test_costs_are_in_the_currency_or_in_gpu_hours_where_no_price_is_known():
    source = runs.simulated()
    free = change(source.manifest, prices=Prices())
    assert ("USD for", 2) in overview_of(source.metrics, source.manifest).groups
    assert ("GPU-hours for", 2) in overview_of(source.metrics, free).groups


def test_a_million_tokens_cost_the_gpu_hours_that_they_take():
    cell = next(cell for cell in cells_of(runs.simulated().metrics) if cell.gpus == 2 and cell.levels)
    level = change(cell.levels[0], output_tokens_per_s=change(cell.levels[0].output_tokens_per_s, value=1000.0))
    assert cost_per_million_tokens(cell, Point(1, level, None), Price(3.6, "USD")) == Bounded(pytest.approx(2.0), None)


def test_what_was_composed_of_bursts_stands_for_the_bursts():
    cell = next(cell for cell in cells_of(runs.small().metrics))
    made = composed_level(2, p50=5.0, mean=6.0)
    bursts = replace(cell, figures=change(cell.figures, composed=(made,)))
    shown = configurations([bursts], Price(3.6, "USD"), with_slos=False).rows[0].figures
    assert (shown[0], *shown[2:6]) == ("2", "5.00", "9.00", "—", "40.0")
    assert shown[7] == "3.00"  # 1,000 answers of 6 s on average, two at once, at 3.6 an hour


def composed_level(concurrency, *, p50, mean):
    times = ComposedTimes(mean=Bounded(mean, None), p50=Bounded(p50, None), p90=Bounded(9.0, None))
    health = runs.small().metrics.cells[0].levels[0]
    nothing = Bounded(None, None)
    return ComposedLevel(
        concurrency=concurrency, evidence="composed", n_starts=1, n_requests=2, step_s=nothing,
        step_s_per_context_token=nothing, first_token_s=nothing, bend_share=None, time_to_final_answer_s=times,
        tokens_per_s_per_user=Bounded(40.0, None), output_tokens_per_s=Bounded(80.0, None), n_answers=8,
        lengths_of="both engines", client_health=health.client_health, reconciliation=health.reconciliation,
        damaged_files=(), reason=None,
    )  # fmt: skip


def test_answer_at_a_rate_says_the_rate_and_names_no_number_of_users():
    source = runs.small()
    manifest = change(source.manifest, scenario_options={"rate": 0.5, "arrivals": "poisson"})
    alone = change(source.metrics, cells=source.metrics.cells[:1], decisions=(), comparisons=())
    assert answer_of(alone, manifest).startswith("SGLang with QwQ-32B-AWQ on 1 GPU at 0.5 requests/s (poisson), half of ")


def test_both_engines_are_named_where_the_levels_of_one_failed_a_check():
    def sicken(cell):
        late = [change(one, client_health=change(one.client_health, status="fail")) for one in cell.levels]
        return change(cell, levels=tuple(late)) if cell.engine == "vllm" else cell

    sick = runs.with_metrics(runs.with_cells(runs.small(), sicken), decisions=())
    assert answer_of(sick.metrics, sick.manifest).startswith("No verdict between SGLang and vLLM; SGLang with QwQ-32B-AWQ ")


@pytest.mark.parametrize(
    ("other", "words"), [(0, "No configuration is within the SLOs."), (None, "; none is shown to be within the SLOs.")]
)
def test_answer_says_where_no_configuration_is_within_the_slos(other, words):
    source, limits = runs.simulated(), iter([0, other])

    def limit(cell):
        return change(cell, maximum_concurrency=change(cell.maximum_concurrency, by_slo=next(limits)))

    cells = tuple(limit(cell) for cell in [one for one in source.metrics.cells if one.levels][:2])
    assert answer_of(change(source.metrics, cells=cells), source.manifest).endswith(words)


def search(cell, within, broken):
    return ConcurrencySearch(
        cell=cell.id, simulated=True, within=within, broken=broken, binds="ttft_s:p50<2", limit="slo", reason=None, start=1,
        start_source="asked", most=8, levels=(), n_requests=9, gpu_minutes=None,
    )  # fmt: skip


def test_a_search_says_how_many_users_a_configuration_serves():
    source = runs.simulated()
    first, second = source.metrics.cells[:2]
    metrics = change(source.metrics, cells=(first, second), searches=(search(first, 1, 4), search(second, 4, None)))
    assert [row.figures[:2] for row in overview_of(metrics, source.manifest).rows] == [("1", "1"), ("≥ 4", "4")]
    assert answer_of(metrics, source.manifest).endswith(
        "SGLang with QwQ-32B-AWQ on 2 GPUs serves at least 4 users within the SLOs."
    )
    none = change(metrics, searches=(search(first, 0, 1),))
    assert answer_of(none, source.manifest).lower().endswith("no configuration is shown to be within the slos.")


def test_a_search_whose_end_failed_a_check_answers_nothing():
    source = runs.simulated()
    (first, second), sick = source.metrics.cells[:2], "late"
    low = first.levels[0]
    low = change(low, client_health=change(low.client_health, status="fail", reasons=(sick,)))
    cells = (change(first, levels=(low, *first.levels[1:])), second)
    metrics = change(source.metrics, cells=cells, searches=(search(first, 1, 4),))
    assert answer_of(metrics, source.manifest).lower().endswith("a check failed where the search ended.")
