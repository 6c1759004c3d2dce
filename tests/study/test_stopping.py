"""A study that stops when its verdicts are certain: which cells are measured again, in which repeat."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace as replace_

from loadtest.analysis.run import analyze
from loadtest.errors import UsageError
from loadtest.metrics.level_schema import ConditionCheck
from loadtest.records import read
from loadtest.report.overview import answer_of
from loadtest.study import run as study_run
from loadtest.study import stopping
from loadtest.study.bursts import asked
from loadtest.study.execution import Execution
from loadtest.study.resumption import reopened
from loadtest.study.schema import AskedPass, Cell, Study, in_mode
from loadtest.workload.contract import Contract
from tests.support import builders

CELLS = tuple(Cell(engine=engine, model="qwq-32b-awq", tp=tp, gpu="l20") for tp in (1, 2) for engine in ("sglang", "vllm"))
STUDY = Study(name="s", workload="math:n=8", cells=CELLS, levels=(1,), repeats=6, until_decided=True)
PACES = (1.0, 1.004, 0.997, 1.002, 0.999, 1.003)


def started(cell, repeats, gap_s=0.03, noise=1.0):
    """One cell with the passes of these repeats; starts vary by `noise` times a third of a percent."""
    levels = [
        builders.level(
            builders.closed_loop(
                1, 10, seed=repeat + 7 * len(cell.engine), gap_s=gap_s * PACES[repeat - 1] ** noise, noise=0.01
            ),
            repeat=repeat,
        )
        for repeat in repeats
    ]
    return builders.cell(levels, cell.engine, tp=cell.tp)


def measured(*cells):
    return analyze(builders.run(cells, until_decided=True))


def looked(metrics, study=STUDY, repeat=3, said=lambda _: None, precision=None):
    execution = SimpleNamespace(study=study, contract=Contract(), blocked={}, precision=precision, say=said)
    return stopping.look(execution, metrics, repeat)


def needed(metrics, said=lambda _: None, **options):
    wanted = looked(metrics, said=said, **options)
    return [cell.id for cell in CELLS if cell.id in wanted.cells]


def test_a_pair_with_a_certain_verdict_is_not_measured_again():
    slow, quick, one, other = CELLS
    said = []
    metrics = measured(
        started(slow, (1, 2, 3), 0.04), started(quick, (1, 2, 3)),
        started(one, (1, 2, 3), 0.031, noise=9), started(other, (1, 2, 3), noise=9),
    )  # fmt: skip
    assert needed(metrics, said.append) == [one.id, other.id]
    assert said[0].startswith(f"{slow.id} against {quick.id}: slower; 3 starts each")
    assert said[-1] == "2 of 4 cells are still needed"


def test_equal_is_certain_too():
    metrics = measured(started(CELLS[0], (1, 2, 3)), started(CELLS[1], (1, 2, 3)))
    assert needed(metrics) == []


def varied(batch, switch, gap_s, noise=1.0):
    """Three starts of a configuration of two factors."""
    name = f"batch={batch},switch={switch}"
    cell = started(CELLS[1], (1, 2, 3), gap_s, noise)
    facts = builders.changed(cell.engine, id=f"{cell.id}_{name}", name=name, factors={"batch": batch, "switch": switch})
    return replace(cell, id=facts.id, engine=facts, levels=tuple(replace(one, cell=facts.id) for one in cell.levels))


def test_what_is_varied_is_asked_as_a_change_not_pair_by_pair():
    """The switch is certain; of the batch, which is not, every cell shows something."""
    noisy = {"8": 9.0, "64": 20.0}
    gaps_s = {("8", "off"): 0.03, ("8", "on"): 0.045, ("64", "off"): 0.031, ("64", "on"): 0.0465}
    metrics = measured(*(varied(*key, gap_s, noisy[key[0]]) for key, gap_s in gaps_s.items()))
    study = replace(STUDY, cells=tuple(
        Cell(engine="vllm", model="qwq-32b-awq", gpu="l20", name=one.name, factors=one.factors) for one in metrics.cells
    ))  # fmt: skip
    said = []
    batch, switch = stopping.questions(study, metrics)[1::2][:2]
    assert ([batch.title, switch.title], switch.verdict) == (["batch 64 instead of 8", "switch on instead of off"], "slower")
    wanted = looked(metrics, study, said=said.append)
    assert wanted.levels == {cell.id for cell in study.cells}
    assert sum(line.startswith("switch on instead of off: slower; 2 pairs of cells") for line in said) == 1
    assert len(wanted.nearest) == 2  # the pairs that show the batch


def test_a_cell_that_does_not_fit_is_not_waited_for_and_one_that_failed_is():
    for status, kept in (("refused", []), ("failed", [CELLS[0].id, CELLS[1].id])):
        metrics = measured(builders.cell([], "sglang", status=status, reason="no"), started(CELLS[1], (1, 2)))
        assert needed(metrics) == kept


def test_with_a_precision_a_pair_goes_on_until_its_interval_is_as_narrow():
    metrics = measured(started(CELLS[0], (1, 2, 3), 0.04), started(CELLS[1], (1, 2, 3)))
    ratio = metrics.decisions[0].ratio
    width = max(ratio.high / ratio.value, ratio.value / ratio.low) - 1
    assert needed(metrics) == []
    assert needed(metrics, precision=1.01 * width) == []
    assert needed(metrics, precision=0.99 * width) == [CELLS[0].id, CELLS[1].id]


DECISION = in_mode(replace(STUDY, cells=CELLS[:2]), "decision")


def decided(*broken, **changes):
    """What is known of one pair after two starts: undecided, with these conditions broken."""
    found = measured(started(CELLS[0], (1, 2), noise=9), started(CELLS[1], (1, 2), noise=9))
    (pair,) = found.decisions
    return replace_(found, decisions=(replace_(pair, broken=broken, verdict="undecided", **changes),))


def test_a_pair_whose_bursts_break_a_condition_gets_natural_passes_and_says_why():
    said = []
    assert looked(decided(), DECISION).bursts == {CELLS[0].id, CELLS[1].id}
    wanted = looked(decided("a: no preemption: 3 preemptions"), DECISION, repeat=1, said=said.append)
    assert (wanted.bursts, wanted.levels) == (set(), {CELLS[0].id, CELLS[1].id})
    assert said == [
        f"{CELLS[0].id} against {CELLS[1].id}: natural passes instead of bursts, as a: no preemption: 3 preemptions"
    ]


def unsure(found):
    """The first cell's natural run lies beyond the limit, by one noisy pass."""
    doubt = ConditionCheck(name="own times", status="undecided", value=0.04, limit=0.03, reason="+4.0 % [-3.0, +11.0]")
    first, *rest = found.cells
    return replace_(found, cells=(replace_(first, conditions=(doubt,)), *rest))


def test_a_natural_run_that_is_unsure_is_repeated_once_more():
    said = []
    study = replace(DECISION, natural_users=1)
    wanted = looked(unsure(decided()), study, repeat=2, said=said.append)
    assert (wanted.natural, wanted.bursts) == ({CELLS[0].id}, {CELLS[0].id, CELLS[1].id})
    assert said[0] == f"{CELLS[0].id}: one more natural run, as own times: +4.0 % [-3.0, +11.0]"
    done = replace_(decided(), decisions=(replace_(decided().decisions[0], verdict="equal"),))
    alone = looked(unsure(done), study, repeat=2)
    assert (alone.natural, alone.bursts) == ({CELLS[0].id}, set())
    assert [one.name(3) for one in alone.passes(study, Contract(), CELLS[0])] == ["bursts-c01-r3", "c01-r3"]


def test_bursts_that_break_late_still_get_two_natural_starts():
    study = replace(DECISION, repeats=2)
    late = decided("a: no preemption: 3 preemptions", evidence="measured", n_a=0, n_b=0)
    assert stopping.last_repeat(study, late, repeat=1, last=2) == 3
    assert stopping.last_repeat(study, late, repeat=2, last=2) == 4
    assert stopping.last_repeat(study, decided("a: broken", evidence="measured", n_a=1, n_b=1), 2, 2) == 3
    assert stopping.last_repeat(study, decided("a: broken", evidence="measured", n_a=2, n_b=2), 3, 3) == 3
    assert stopping.last_repeat(study, decided(), 2, 2) == 2
    beyond = looked(late, study, repeat=2)
    assert (beyond.levels, beyond.bursts, beyond.natural) == ({CELLS[0].id, CELLS[1].id}, set(), set())


def test_the_natural_run_is_made_up_for_where_it_is_missing():
    assert looked(decided(), DECISION).natural == {CELLS[0].id, CELLS[1].id}
    assert looked(decided(), replace(DECISION, natural_users=1)).natural == set()  # c01 is there


def test_one_look_more_asks_for_a_stricter_level():
    passes = started(CELLS[0], (1, 2, 3), 0.0303), started(CELLS[1], (1, 2, 3))
    once, often = (analyze(builders.run(passes, until_decided=looks)).decisions[0].ratio for looks in (False, True))
    assert often.low < once.low < once.high < often.high


@pytest.fixture
def carried_out(monkeypatch, tmp_path):
    """Run a study whose servers are made up; returns (cell, repeat) in order, and the run."""

    def run(study, slower, interrupted=None, **options):
        done, passes = [], {cell.id: [] for cell in study.cells}

        def measure(execution, cell, repeat):
            if interrupted == (cell.id, repeat):
                raise KeyboardInterrupt
            done.append((cell.id, repeat))
            passes[cell.id].append(repeat)
            shutil.rmtree(execution.out / "cells", ignore_errors=True)  # each pass is written anew, not added to
            builders.write(
                builders.run(
                    [started(one, passes[one.id], slower.get(one.id, 0.03)) for one in study.cells], until_decided=True
                ),
                execution.out,
            )
            return True

        monkeypatch.setattr(study_run, "_run_cell", measure)
        monkeypatch.setattr(study_run, "_blocked", lambda *_: {})
        assert study_run.execute(study, tmp_path / "run", say=lambda _: None, **options) == ()
        return done, read.read_run(tmp_path / "run")

    return run


def test_ctrl_c_leaves_the_decision_so_far_with_an_interval_that_makes_up_for_the_looks(carried_out, tmp_path):
    """In the third repeat, after the first engine's start: three starts against two."""
    with pytest.raises(KeyboardInterrupt):
        carried_out(replace(STUDY, cells=CELLS[:2]), {CELLS[0].id: 0.0302}, interrupted=(CELLS[1].id, 3))
    run = read.read_run(tmp_path / "run")
    metrics = analyze(run)
    (pair,) = metrics.decisions
    assert (run.manifest.interrupted, pair.n_a, pair.n_b, pair.verdict) == (True, 3, 2, "undecided")
    once = analyze(replace(run, manifest=replace_(run.manifest, until_decided=False))).decisions[0].ratio
    assert pair.ratio.low < once.low < once.high < pair.ratio.high
    assert answer_of(metrics, run.manifest).startswith("So far: Undecided: vLLM seems ")


def test_a_study_stops_as_soon_as_all_is_certain(carried_out):
    done, run = carried_out(replace(STUDY, cells=CELLS[:2]), {CELLS[0].id: 0.06})
    repeats = max(repeat for _, repeat in done)
    assert repeats < 6
    assert len(done) == 2 * repeats
    assert run.manifest.complete
    assert analyze(run).decisions[0].verdict == "slower"


def test_without_until_decided_every_repeat_is_measured(carried_out):
    done, _ = carried_out(replace(STUDY, cells=CELLS[:2], until_decided=False, repeats=4), {CELLS[0].id: 0.06})
    assert [repeat for _, repeat in done] == [1, 1, 2, 2, 3, 3, 4, 4]


def spent(budget_s, **starts_s):
    """An execution of four cells that began now, and what their last starts took; nothing is predicted."""
    remaining = SimpleNamespace(pass_s=lambda cell, asked: None)
    made = Execution(DECISION, Contract(), Path("run"), "id", print, False, {}, remaining, print, wanted=asked.Wanted())
    made.study, made.budget_s = replace(DECISION, cells=CELLS), budget_s
    for cell, took_s in zip(CELLS, starts_s.values(), strict=False):
        made.spending.cell_ended(cell.id, took_s)
    return made


def pairs(*open_ones):
    """Two pairs with bursts still to be measured, in this order of nearness."""
    ids = [frozenset(cell.id for cell in CELLS[i : i + 2]) for i in (0, 2)]
    return asked.Wanted(bursts=ids[0] | ids[1], nearest=tuple(ids[i] for i in open_ones))


def test_a_budget_that_allows_not_all_pairs_takes_the_nearest_to_a_verdict():
    times = {"a": 1000.0, "b": 1000.0, "c": 1000.0, "d": 1000.0}
    assert stopping.affordable(spent(1.0), pairs(0, 1)) == pairs(0, 1)  # the first repeat is always measured
    assert stopping.affordable(spent(None, **times), pairs(0, 1)) == pairs(0, 1)
    assert stopping.affordable(spent(4100.0, **times), pairs(0, 1)) == pairs(0, 1)
    for first in (0, 1):
        chosen = stopping.affordable(spent(3900.0, **times), pairs(first, 1 - first))
        assert chosen.cells == {cell.id for cell in CELLS[2 * first : 2 * first + 2]}
    assert stopping.affordable(spent(1900.0, **times), pairs(0, 1)).cells == set()
    assert stopping.affordable(spent(3900.0, **times), asked.Wanted(levels=pairs().cells)).cells == set()


def test_a_natural_run_does_not_count_for_later_starts():
    one = spent(3000.0)
    for cell in CELLS[:2]:
        for level, kind, took_s in ((1, (200,), 100.0), (16, (), 800.0)):
            one.spending.pass_ended(cell.id, AskedPass(concurrency=level, contexts_tokens=kind), took_s)
        one.spending.cell_ended(cell.id, 1000.0)
    assert one.spending.starts_s == dict.fromkeys((cell.id for cell in CELLS[:2]), 100.0)
    bursts = asked.Wanted(bursts=frozenset(cell.id for cell in CELLS[:2]))
    assert one.has_time_for(bursts)
    one.budget_s = 300.0
    assert not one.has_time_for(bursts)
    one.budget_s = 1500.0
    assert not one.has_time_for(replace(bursts, natural=bursts.bursts))


def test_without_hours_for_a_second_repeat_there_is_one(carried_out, monkeypatch):
    now_s = int(study_run.time.monotonic())
    ticks = iter(range(now_s, now_s + 10**6, 1000))
    monkeypatch.setattr(study_run.time, "monotonic", lambda: next(ticks))
    done, _ = carried_out(replace(STUDY, cells=CELLS[:2]), {}, budget_s=1500.0)
    assert [repeat for _, repeat in done] == [1, 1]


def test_a_run_that_was_looked_at_and_extended_is_judged_more_strictly(tmp_path):
    known = builders.run([], repeats=2).manifest
    for again, looked in ((replace_(known, repeats=2), False), (replace_(known, repeats=4), True)):
        assert reopened(tmp_path, known, again).until_decided is looked
    assert reopened(tmp_path, replace_(known, until_decided=True), known).until_decided


@pytest.mark.parametrize("repeats", [1, 7])
def test_looks_are_counted_on_two_to_six_starts(repeats):
    with pytest.raises(UsageError, match="repeats: expected 2 to 6 with until_decided, got"):
        replace(STUDY, repeats=repeats)


def test_a_duel_ends_where_no_round_can_be_relied_on():
    one, other = CELLS[:2]
    metrics = measured(started(one, (1, 2, 3)), started(other, (1, 2, 3)))
    [pair] = metrics.decisions
    doubtful = replace_(metrics, decisions=(replace_(pair, unit="round", verdict="too few samples"),))
    assert needed(doubtful, repeat=3) == [one.id, other.id]
    assert needed(doubtful, repeat=6) == []
