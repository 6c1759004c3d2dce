"""Duels of both simulated engines in virtual time: rounds of bursts on machines that are a little faster or slower."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from loadtest.analysis.bursts.cells import BurstCell, burst_cells, recorded
from loadtest.analysis.bursts.composed import composed_pair
from loadtest.analysis.judgement import Pair, judge_pairs
from loadtest.analysis.run import analyze
from loadtest.decision.rounds import MOST_ROUNDS
from loadtest.metrics.request_arrays import earliest_anchor
from loadtest.perfmodel.constants import FACTORS, Machine
from loadtest.perfmodel.machine_fit import as_toml
from loadtest.records.read import Run, read_run
from loadtest.study import fast_forward
from loadtest.study.schema import Cell, Study

ROUNDS, DUELS, FEW = 12, 400, 5  # simulated, drawn from these, in each
LEVELS = (1, 8)
NOISE = 0.01  # of a server from round to round


@dataclass(frozen=True)
class Round:
    """One round of both servers: its run, and both cells as an analysis reads them."""

    run: Run
    cells: tuple[BurstCell, ...]


@dataclass(frozen=True)
class World:
    """Rounds of one engine: those of servers alike, and of one that is a tenth slower."""

    alike: list[Round]
    slowed: list[Round]


def cell(engine, side, factor, folder):
    machine = folder / f"{side}.toml"
    machine.write_text(as_toml(Machine(**dict.fromkeys(FACTORS, factor))))
    return Cell(
        engine=engine,
        model="qwq-32b-awq",
        gpu="l20",
        side=side,
        calibration=str(machine),
        args=("--length-scale", "0.2", "--calibration", str(machine)),
    )


def played(engine, seed, slower, folder):
    """One round of both servers."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    factors = {"a": np.exp(rng.normal(0, NOISE)), "b": slower * np.exp(rng.normal(0, NOISE))}
    study = Study(
        name="duel",
        workload="math:n=16,seed=7",
        cells=tuple(cell(engine, side, float(factor), folder) for side, factor in factors.items()),
        mode="decision",
        levels=LEVELS,
        repeats=MOST_ROUNDS,
        until_decided=True,
        natural_users=8,
        natural_prompts=16,
    )
    assert fast_forward.simulate_study(study, folder / "run", say=lambda line: None) == ()
    run = read_run(folder / "run")
    cells = burst_cells(
        [recorded(one, earliest_anchor(run.cells[0].bursts)) for one in run.cells], run.manifest.natural_users
    )
    return Round(run, tuple(cells.values()))


def alone(engine):
    """All tests of an engine in one process, which makes its rounds once."""
    return pytest.param(engine, marks=pytest.mark.xdist_group(f"duels of {engine}"))


@pytest.fixture(scope="module", params=[alone("vllm-sim"), alone("sglang-sim")])
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    found = {
        slower: [played(request.param, seed, slower, folder / f"{slower}-{seed}") for seed in range(ROUNDS)]
        for slower in (1.0, 1.1)
    }
    return World(found[1.0], found[1.1])


def duel(rounds, rng):
    """The decision of a duel of a few of these rounds, from their bursts; the natural run is that of the first."""
    chosen = [rounds[i] for i in rng.choice(len(rounds), FEW, replace=False)]
    a, b = (replace(first, points=_points(chosen, at)) for at, first in enumerate(chosen[0].cells))
    pair = Pair(a="a", b="b", levels=(), composed=composed_pair(a, b, LEVELS))
    [found] = judge_pairs([pair], 0.0, sequential=True, unit="round").decisions
    return found, chosen


def _points(chosen, at):
    """Of one side: by concurrency and round."""
    return {level: {n: one.cells[at].points[level][1] for n, one in enumerate(chosen, 1)} for level in LEVELS}


def whole(chosen):
    """The same duel by the analysis of its records."""
    first = chosen[0].run
    cells = []
    for at, cell in enumerate(first.cells):
        bursts = tuple(replace(one, repeat=n) for n, other in enumerate(chosen, 1) for one in other.run.cells[at].bursts)
        cells.append(replace(cell, bursts=bursts))
    [found] = analyze(replace(first, cells=tuple(cells))).decisions
    return found


def test_a_duel_of_bursts_is_what_the_whole_analysis_says(world):
    rng = np.random.default_rng(3)
    for rounds in (world.alike, world.slowed):
        for _ in range(3):
            found, chosen = duel(rounds, rng)
            expected = whole(chosen)
            assert (expected.unit, expected.n_a, expected.n_b, expected.broken) == ("round", FEW, FEW, ())
            assert found.verdict == expected.verdict
            assert found.ratio.ci95 == pytest.approx(expected.ratio.ci95)


@pytest.mark.timeout(1800)
def test_a_server_against_itself_is_equal_or_undecided(world):
    rng = np.random.default_rng(1)
    said = [duel(world.alike, rng)[0].verdict for _ in range(DUELS)]
    print(said.count("equal"), said.count("undecided"))
    assert sum(word in ("equal", "undecided") for word in said) >= 0.95 * DUELS


@pytest.mark.timeout(1800)
def test_a_server_that_is_a_tenth_slower_is_named(world):
    rng = np.random.default_rng(2)
    assert {duel(world.slowed, rng)[0].verdict for _ in range(DUELS)} == {"faster"}
