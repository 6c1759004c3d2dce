"""Configurations of one engine: which is held against which, what a change does, and what it does not."""

from dataclasses import replace

import pytest

from loadtest.analysis.factors import baselines
from loadtest.analysis.run import analyze
from loadtest.records.engine_facts import ContractFacts
from tests.support import builders


def configured(name, gap_s, factors, engine="vllm", seed=0, levels=(1,), **facts):
    """Three starts of a configuration, at each level."""
    made = [
        builders.level(
            builders.closed_loop(c, 8, gap_s=gap_s, noise=0.01, seed=100 * seed + 10 * c + r), concurrency=c, repeat=r
        )
        for c in levels
        for r in (1, 2, 3)
    ]
    cell = builders.cell(made, engine, name=name, factors=factors, **facts)
    full = f"{cell.id}_{name}"
    levels = tuple(replace(one, cell=full) for one in cell.levels)
    return replace(cell, id=full, engine=builders.changed(cell.engine, id=full), levels=levels)


def grid(effect=0.9, interaction=1.0, **more):
    """Two factors at two levels each: `--new on` multiplies the gap by `effect`, and once more where `--big` is 64."""
    return [
        configured(
            f"big={big},new={new}",
            0.03 * (effect if new == "on" else 1) * (interaction if (big, new) == ("64", "on") else 1),
            {"--big": big, "--new": new},
            seed=i,
            **more,
        )
        for i, (big, new) in enumerate([("8", "off"), ("8", "on"), ("64", "off"), ("64", "on")])
    ]


def judged(cells, **manifest):
    return analyze(builders.run(cells, **manifest))


def test_each_change_is_averaged_over_the_other_factor():
    found = judged(grid())
    big, new = found.factors
    assert (big.factor, big.level, big.baseline, big.verdict) == ("--big", "64", "8", "equal")
    assert (new.factor, new.level, new.baseline, new.verdict) == ("--new", "on", "off", "faster")
    assert new.ratio.value == pytest.approx(0.9, rel=0.02)
    assert new.ratio.low < new.ratio.value < new.ratio.high < 1
    assert [pair[0].rpartition("_")[2] for pair in new.pairs] == ["big=8,new=on", "big=64,new=on"]
    assert len(new.pair_ratios) == 2
    total = next(row.ratio for row in new.figures if row.metric == "output_tokens_per_s")
    assert total.low > 1
    assert total.value == pytest.approx(1 / 0.9, rel=0.03)


def test_an_effect_that_depends_on_the_other_factor_is_told_pair_by_pair():
    """A wait of 0.4 s and 1.8 s of tokens: 0.63 and 0.9 times the gap are 0.70 and 0.92 times the whole."""
    _, new = judged(grid(interaction=0.7)).factors
    assert sorted(new.pair_ratios) == pytest.approx([0.70, 0.92], rel=0.02)


def test_a_change_is_told_at_each_concurrency():
    _, new = judged(grid(levels=(1, 2))).factors
    assert [(one.concurrency, one.verdict) for one in new.by_concurrency] == [(1, "faster"), (2, "faster")]
    assert new.concurrency == (1, 2)


def test_configurations_are_compared_with_the_baseline_that_is_named():
    cells = grid()
    pairs = {(one.a, one.b) for one in judged(cells).decisions}
    assert pairs == {(one.id, cells[0].id) for one in cells[1:]}
    named = judged(cells, baseline="big=64,new=on")
    assert {one.b for one in named.decisions} == {cells[3].id}
    assert [(one.level, one.baseline, one.verdict) for one in named.factors][1] == ("off", "on", "slower")


def test_engines_are_compared_under_one_name_and_configurations_within_an_engine():
    both = [
        configured(name, 0.03, {"--a": level}, engine=engine, seed=i)
        for i, (engine, name, level) in enumerate(
            [("vllm", "a=1", "1"), ("vllm", "a=2", "2"), ("sglang", "a=1", "1"), ("sglang", "a=2", "2")]
        )
    ]
    pairs = sorted(
        (one.a.replace("_qwq-32b-awq_tp1", ""), one.b.replace("_qwq-32b-awq_tp1", "")) for one in judged(both).decisions
    )
    assert pairs == [
        ("sglang_a=1", "vllm_a=1"),
        ("sglang_a=2", "sglang_a=1"),
        ("sglang_a=2", "vllm_a=2"),
        ("vllm_a=2", "vllm_a=1"),
    ]
    against = baselines([cell.engine for cell in both], both[2].id)
    assert against == {both[0].id: both[2].id, both[1].id: both[2].id, both[3].id: both[2].id}


def test_one_start_each_decides_nothing():
    cells = [replace(one, levels=one.levels[:1]) for one in grid()]
    assert {one.verdict for one in judged(cells).factors} == {"one start each"}
    assert all(one.ratio.value and one.ratio.ci95 is None for one in judged(cells).factors)


def test_what_a_named_configuration_sets_is_no_reason_not_to_compare():
    def told(seqs):
        return ContractFacts(effective={"max_running_requests": seqs, "kv_dtype": "fp8" if seqs == 64 else "bf16"})

    cells = [
        configured(
            f"max-num-seqs={n}", 0.03, {"--max-num-seqs": str(n)}, seed=n, args=["--max-num-seqs", str(n)], contract=told(n)
        )
        for n in (8, 64)
    ]
    (found,) = judged(cells).decisions
    assert (found.verdict, found.reason) == ("not comparable", "different kv_dtype")
    assert judged(cells).factors[0].verdict == "not comparable"
