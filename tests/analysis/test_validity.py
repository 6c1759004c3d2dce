"""Levels that failed a check: no verdict, no maximum, no claim, no replica rests on them; those that passed are used."""

from dataclasses import replace

import pytest
from msgspec import structs

from loadtest import cli
from loadtest.analysis import capacity, validity
from loadtest.analysis.compare import compare_runs
from loadtest.analysis.run import analyze
from loadtest.metrics.slo import parse_slo
from loadtest.records.engine_facts import ContractFacts
from tests.support import builders


def study(gap_s=0.03, late=(), effective=()):
    """Two engines at concurrency 1, 2 and 4, three starts each; at `late` levels vLLM's load generator was late."""
    cells = []
    for engine in ("sglang", "vllm"):
        pace = gap_s if engine == "vllm" else 0.03
        passes = [
            builders.level(
                builders.closed_loop(c, 24, seed=10 * repeat + c, gap_s=pace, start_s=1000.0 * repeat),
                concurrency=c,
                repeat=repeat,
            )
            for c in (1, 2, 4)
            for repeat in (1, 2, 3)
        ]
        if engine == "vllm":
            passes = [_late(one) if one.concurrency in late else one for one in passes]
        told = ContractFacts(effective=dict(effective).get(engine, {}))
        cells.append(builders.cell(passes, engine, contract=told))
    return builders.run(cells, slo=["ttft_s:p50<2"])


def _late(passed):
    return replace(passed, health=tuple(replace(s, cpu_share=0.99) for s in passed.health))


def test_engines_are_compared_at_the_levels_that_passed_on_both_sides():
    (whole,) = analyze(study(gap_s=0.04)).decisions
    (found,) = analyze(study(gap_s=0.04, late=[4])).decisions
    assert (whole.concurrency, whole.reason.count("without")) == ((1, 2, 4), 0)
    assert (whole.verdict, found.verdict, found.concurrency) == ("faster", "faster", (1, 2))
    assert found.reason.endswith("; without concurrency 4: a check failed")


def test_no_sound_level_is_no_verdict():
    metrics = analyze(study(gap_s=0.04, late=[1, 2, 4]))
    (found,) = metrics.decisions
    assert (found.verdict, found.ratio.value) == ("too few samples", None)
    assert found.reason == "no sound level; without concurrency 1, 2, 4: a check failed"
    assert metrics.comparisons == ()


def test_the_maximum_the_roofline_and_replicas_are_of_sound_levels():
    metrics = analyze(study(late=[1, 4]))
    sglang, vllm = metrics.cells
    assert (sglang.maximum_concurrency.by_slo, vllm.maximum_concurrency.by_slo) == (4, 2)
    assert vllm.roofline.reached_share is None
    assert vllm.roofline.reason == "no sound level with a request at concurrency 1"
    options = capacity.plan(metrics.cells, [parse_slo("ttft_s:p50<2")], capacity.CapacityDemand(users=8))
    assert {one.engine: one.streams_per_replica.value for one in options} == {"sglang": 4, "vllm": 2}
    none = analyze(study(late=[1, 2, 4])).cells[1].maximum_concurrency
    assert (none.by_slo, none.reason) == (None, "no sound level was measured")


def test_engines_that_ran_with_other_settings_are_not_comparable():
    effective = {"sglang": {"prefix_caching": True}, "vllm": {"prefix_caching": False}}
    (found,) = analyze(study(gap_s=0.04, effective=effective)).decisions
    assert (found.verdict, found.reason) == ("not comparable", "different prefix_caching")
    (alike,) = analyze(study(gap_s=0.04, effective={"sglang": {"prefix_caching": True}})).decisions
    assert alike.verdict == "faster"


def test_a_gate_that_was_not_checked_leaves_a_doubt_and_the_verdict():
    level = analyze(study()).cells[0].levels[0]
    unchecked = structs.replace(
        level, reconciliation=structs.replace(level.reconciliation, status="not_checked", reasons=("no totals",))
    )
    assert validity.unsound_reasons(unchecked) == ()
    cell = structs.replace(analyze(study()).cells[0], levels=(unchecked,))
    assert [str(one) for one in validity.doubts([cell])] == [f"{cell.id} at 1: no totals"]


def test_two_runs_are_compared_at_sound_levels_of_both():
    old, new = study(), study(gap_s=0.04, late=[2])
    unsound = tuple(validity.unsound_places(analyze(one).cells) for one in (old, new))
    found = {one.a: one for one in compare_runs(old, new, unsound=unsound).decisions}
    assert [one.concurrency for one in found.values()] == [(1, 2, 4), (1, 4)]


@pytest.mark.parametrize(("late", "code"), [([2], 3), ([1, 2, 4], 2)])
def test_a_regression_is_found_at_a_sound_level_only(late, code, tmp_path, capsys):
    for name, made in (("old", study()), ("new", study(gap_s=0.04, late=late))):
        sound = replace(made, cells=made.cells[1:])
        builders.write(sound, tmp_path / name)
    assert cli.main(["compare", str(tmp_path / "old"), str(tmp_path / "new")]) == code
    said = capsys.readouterr()
    if code == 2:
        assert "expected a level that is sound in both runs, got none (candidate: DOUBTFUL: " in said.err
        assert said.err.rstrip().endswith("measure again")
    else:
        assert "DOUBTFUL: vllm_qwq-32b-awq_tp1 at 2: " in said.out
