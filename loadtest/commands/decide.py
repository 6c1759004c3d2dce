"""`compare` and `check`: from numbers to a decision."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from loadtest.commands.finish import as_json
from loadtest.errors import GateError, UsageError
from loadtest.records.bundle import unpacked
from loadtest.records.read import read_run
from loadtest.records.write import write_file
from loadtest.report.terminal import comparison_text, gate_text, number_text, ratio_text

if TYPE_CHECKING:
    from loadtest.analysis.decisions import GateReport, RunComparison
    from loadtest.report.text.gates import Case
    from loadtest.study.execution import Say


def compare(arguments: argparse.Namespace, say: Say) -> str:
    """Paired verdict for every level and metric of two runs; GateError on a significant regression."""
    from loadtest.analysis import compare as comparisons
    from loadtest.analysis.run import analyze
    from loadtest.analysis.validity import unsound_places
    from loadtest.report.text import gates
    from loadtest.study.parse import start_sd_of

    if arguments.tolerance < 0:
        raise UsageError(f"--tolerance: expected a percentage from 0 up, got {arguments.tolerance:g}")
    with unpacked(arguments.baseline) as one, unpacked(arguments.candidate) as other:
        baseline, candidate = read_run(one), read_run(other)
    known_start_sd = None
    if arguments.start_sd is not None:
        machine = candidate.manifest.environment
        cpu = None if machine is None else machine.cpu
        known_start_sd = start_sd_of(arguments.start_sd, [one.engine for one in candidate.cells], cpu)
    before, after = analyze(baseline), analyze(candidate)
    unsound = (unsound_places(before.cells), unsound_places(after.cells))
    found = comparisons.compare_runs(
        baseline, candidate, arguments.tolerance / 100, arguments.allow, known_start_sd, unsound
    )
    doubts = [f"{side}: DOUBTFUL: {reason}" for side, one in (("baseline", before), ("candidate", after))
              for reason in one.health.reasons]  # fmt: skip
    if not (found.comparisons or any(one.evidence == "composed" for one in found.decisions)):
        raise UsageError(f"expected a level that is sound in both runs, got none ({'; '.join(doubts[:2])}); measure again")
    found = msgspec.structs.replace(found, not_compared=(*found.not_compared, *doubts))
    said = as_json(found) if arguments.json else comparison_text(found)
    failed = _slower(found) if found.regressions or found.slower else ""
    _hand_on(arguments, gates.comparison_cases(found), failed or "No significant regression", not failed, found.simulated)
    if failed:
        raise GateError(failed, said)
    return said


def _hand_on(arguments: argparse.Namespace, cases: Sequence[Case], title: str, met: bool, simulated: bool) -> None:
    """What a CI system and a pull request are to read, where it was asked for."""
    from loadtest.report.text import gates

    if arguments.junit is not None:
        write_file(
            arguments.junit, gates.junit(cases, f"loadtest {arguments.handler.rpartition('.')[2]}", simulated=simulated)
        )
    if arguments.summary is not None:
        write_file(arguments.summary, gates.summary(cases, title, met=met, simulated=simulated).encode())


def _slower(found: RunComparison) -> str:
    if not found.regressions:
        pair = found.slower[0]
        return (
            f"{len(found.slower)} cell(s) slower beyond {100 * found.tolerance:g} %: composed {pair.metric} of {pair.a} is"
            f" {number_text(pair.ratio.value)} of the baseline's"
        )
    first = found.regressions[0]
    return (
        f"{len(found.regressions)} significant regression(s) beyond {100 * found.tolerance:g} %: {first.metric} of {first.a}"
        f" at concurrency {first.concurrency} is {ratio_text(first)} of the baseline's"
    )


def check(arguments: argparse.Namespace, say: Say) -> str:
    """A gate for CI: every requirement at every level, or GateError."""
    from loadtest.analysis import objectives as slo_objectives
    from loadtest.analysis.run import analyze
    from loadtest.metrics import slo
    from loadtest.report.text import gates

    objectives = [slo.parse_slo(text) for text in arguments.require]
    with unpacked(arguments.run) as run:
        metrics = analyze(read_run(run))
    levels = sorted({level.concurrency for cell in metrics.cells for level in cell.levels})
    if arguments.concurrency is not None and arguments.concurrency not in levels:
        raise UsageError(f"--concurrency {arguments.concurrency}: expected a level of the run, one of {levels}")
    found = slo_objectives.gate(metrics, objectives, arguments.concurrency, allow_unhealthy=arguments.allow_unhealthy)
    said = as_json(found) if arguments.json else gate_text(found)
    failed = "" if found.met else _unmet(found)
    _hand_on(arguments, gates.gate_cases(found), failed or "Every requirement is met", found.met, found.simulated)
    if failed:
        raise GateError(failed, said)
    return said


def _unmet(found: GateReport) -> str:
    failing = [row for row in found.rows if row.result != "met"]
    if failing:
        first = failing[0]
        return (
            f"{len(failing)} requirement(s) not met: {first.slo} of {first.cell} at concurrency {first.concurrency} is"
            f" {first.result}, got {number_text(first.value)}"
        )
    if found.unmeasured:
        return f"not shown: {found.unmeasured[0]}"
    doubt = found.unhealthy[0]
    return f"the run cannot be relied on: {doubt}; measure again, or judge anyway with --allow-unhealthy"
