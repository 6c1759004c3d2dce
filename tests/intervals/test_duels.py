"""Duels of both simulated engines in virtual time: rounds of bursts on machines that are a little faster or slower."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from loadtest.analysis.run import analyze
from loadtest.decision.rounds import MOST_ROUNDS
from loadtest.perfmodel.constants import FACTORS, Machine
from loadtest.perfmodel.machine_fit import as_toml
from loadtest.records.read import read_run
from loadtest.study import fast_forward
from loadtest.study.schema import Cell, Study

ROUNDS, DUELS, FEW = 12, 100, 5  # simulated, drawn from these, in each
NOISE = 0.01  # of a server from round to round


@dataclass(frozen=True)
class World:
    """Rounds of one engine: those of servers alike, and of one that is a tenth slower; both sides of each."""

    alike: list
    slowed: list


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
        levels=(1, 8),
        repeats=MOST_ROUNDS,
        until_decided=True,
        natural_users=8,
        natural_prompts=16,
    )
    assert fast_forward.simulate_study(study, folder / "run", say=lambda line: None) == ()
    return read_run(folder / "run")


@pytest.fixture(scope="module", params=["vllm-sim", "sglang-sim"])
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    found = {
        slower: [played(request.param, seed, slower, folder / f"{slower}-{seed}") for seed in range(ROUNDS)]
        for slower in (1.0, 1.1)
    }
    return World(found[1.0], found[1.1])


def duel(rounds, rng):
    """The verdict of a duel of a few of these rounds; the natural run is that of the first."""
    chosen = [rounds[i] for i in rng.choice(len(rounds), FEW, replace=False)]
    cells = []
    for at, first in enumerate(chosen[0].cells):
        bursts = tuple(replace(one, repeat=number) for number, run in enumerate(chosen, 1) for one in run.cells[at].bursts)
        cells.append(replace(first, bursts=bursts))
    [found] = analyze(replace(chosen[0], cells=tuple(cells))).decisions
    assert (found.unit, found.n_a, found.n_b, found.broken) == ("round", FEW, FEW, ())
    return found.verdict


@pytest.mark.timeout(1800)
def test_a_server_against_itself_is_equal_or_undecided(world):
    rng = np.random.default_rng(1)
    said = [duel(world.alike, rng) for _ in range(DUELS)]
    print(said.count("equal"), said.count("undecided"))
    assert sum(word in ("equal", "undecided") for word in said) >= 0.95 * DUELS


@pytest.mark.timeout(1800)
def test_a_server_that_is_a_tenth_slower_is_named(world):
    rng = np.random.default_rng(2)
    assert [duel(world.slowed, rng) for _ in range(DUELS // 4)] == ["faster"] * (DUELS // 4)
