"""The conditions of composed figures, cell by cell, as metrics.json shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from msgspec.structs import replace

from loadtest.analysis.bursts.cells import BurstCell
from loadtest.decision import conditions, step_line
from loadtest.decision.bursts import BurstPoints, engine_speed
from loadtest.metrics import reconciliation
from loadtest.metrics.level_schema import ConditionCheck, ConditionName
from loadtest.metrics.request_arrays import Pass
from loadtest.records.read import LevelRecords


def check_conditions(
    cell: BurstCell, siblings: Sequence[BurstCell], anchor: float, *, exact: bool = False
) -> tuple[ConditionCheck, ...]:
    """What must hold of a cell. `siblings`: the cells of its engine and model, itself among them, as a natural run on any of
    them speaks for all. `exact`: nothing disturbs the times, which are virtual."""
    return (
        _straight_line(cell),
        _streams_together(cell),
        _no_preemption(cell, anchor),
        _no_truncation(cell),
        _no_speculation(cell),
        _lengths_by_load(cell),
        _own_times(siblings, exact=exact),
    )


def _check(name: ConditionName, value: float | None, limit: float, reason: str, *, broken: bool) -> ConditionCheck:
    status = "not checked" if value is None else "broken" if broken else "met"
    return ConditionCheck(name=name, status=status, value=value, limit=limit, reason=reason)  # type: ignore[arg-type]


def _straight_line(cell: BurstCell) -> ConditionCheck:
    bends = {level: bend_of(list(points.values())) for level, points in cell.points.items()}
    known = {level: one for level, one in bends.items() if one is not None}
    limit = step_line.MAX_BEND
    if not known:
        return _check("straight line", None, limit, "no bursts of three contexts yet", broken=False)
    level, worst = max(known.items(), key=lambda one: (one[1].bent, abs(one[1].share)))
    said = f"the middle contexts lie {100 * worst.share:+.1f} % off the line at concurrency {level}"
    return _check("straight line", abs(worst.share), limit, said, broken=worst.bent)


def bend_of(starts: Sequence[BurstPoints]) -> step_line.Bend | None:
    """How far the middle contexts lie off the line, over the starts that have every burst; None where none has three."""
    most = max((len(one.step_s) for one in starts), default=0)
    whole = [one for one in starts if len(one.step_s) == most]
    if most < 5:  # three contexts, two halves each; one half may be too short
        return None
    return step_line.bend(np.array([one.context_tokens for one in whole]), np.array([one.step_s for one in whole]))


def _streams_together(cell: BurstCell) -> ConditionCheck:
    """Broken: no pass at a concurrency has a stretch in which all streams of a burst decode, although every request of one
    ended well; as where the engine runs fewer at once."""
    whole = {one.concurrency for _, one in cell.bursts if bool(np.all(one.ok[one.measured]))}
    without = sorted(level for level in whole if not cell.points.get(level))
    said = "all streams of a burst decode together"
    if without:
        said = f"bursts at concurrency {', '.join(map(str, without))} have no stretch in which all streams decode"
    return _check("streams together", float(len(without)) if whole else None, 0, said, broken=bool(without))


def _no_preemption(cell: BurstCell, anchor: float) -> ConditionCheck:
    counted = [reconciliation.count_server([one], anchor).n_preemptions for one in (*cell.bursts, *_natural_run(cell))]
    known = [n for n in counted if n is not None]
    total = sum(known) if known else None
    said = "the server does not count preemptions" if total is None else f"{total:.0f} preemptions"
    return _check("no preemption", total, 0, said, broken=bool(total))


def _natural_run(cell: BurstCell) -> Iterator[tuple[LevelRecords, Pass]]:
    ours = {id(one) for one in cell.natural}
    return (pair for pair in cell.own if id(pair[1]) in ours)


def _no_truncation(cell: BurstCell) -> ConditionCheck:
    outcomes = [outcome for one in cell.natural for outcome, used in zip(one.outcome, one.measured, strict=True) if used]
    cut = sum(outcome == "truncated" for outcome in outcomes)
    said = f"{cut} of {len(outcomes)} natural answers reached the limit of output" if outcomes else "no natural run yet"
    return _check("no truncation", float(cut) if outcomes else None, 0, said, broken=cut > 0)


def _no_speculation(cell: BurstCell) -> ConditionCheck:
    if cell.facts.command is None and not cell.facts.simulated:
        return _check("no speculation", None, 0, "the server was not started by this run", broken=False)
    found = [word for word in cell.facts.command or () if "speculative" in word]
    said = f"speculative decoding is on: {found[0].partition('=')[0]}" if found else "no speculative decoding"
    return _check("no speculation", float(bool(found)), 0, said, broken=bool(found))


def _lengths_by_load(cell: BurstCell) -> ConditionCheck:
    found = conditions.lengths_by_load(cell.natural) if cell.natural else None
    if found is None:
        said = "the natural run has one load" if cell.natural else "no natural run yet"
        return _check("lengths independent of load", None, conditions.LOAD_P, said, broken=False)
    way = "sooner" if found.log_hazard > 0 else "later"
    said = f"answers end {abs(100 * found.log_hazard):.1f} % {way} for each further stream (p = {found.p_value:.2g})"
    return _check(
        "lengths independent of load", found.p_value, conditions.LOAD_P, said, broken=found.p_value < conditions.LOAD_P
    )


def _own_times(siblings: Sequence[BurstCell], *, exact: bool) -> ConditionCheck:
    """Broken: the whole interval is beyond the limit, and a second run confirms it, unless time is virtual (`exact`)."""
    found = [(one, cell.facts.id) for cell in siblings for one in _beside_bursts(cell)]
    limit = conditions.MAX_OWN_TIMES
    if not found:
        return _check("own times", None, limit, "no natural run beside bursts of its concurrency yet", broken=False)
    share = conditions.own_share([one for one, _ in found])
    value, ends = share.value or 0.0, share.ci95 or (share.value, share.value)
    low, high = (100 * (end or 0.0) for end in ends)
    runs = "the natural run" if len(found) == 1 else f"{len(found)} natural runs"
    said = f"{runs} of {found[-1][1]} took {100 * value:+.1f} % [{low:+.1f}, {high:+.1f}] against the line of its bursts"
    beyond = low > 100 * limit or high < -100 * limit
    broken = beyond and (exact or len(found) > 1)
    made = _check("own times", abs(value), limit, said, broken=broken)
    return replace(made, status="undecided") if abs(value) > limit and not broken else made


def _beside_bursts(cell: BurstCell) -> Iterator[conditions.OwnTimes]:
    """The natural runs of a cell that have bursts of their concurrency in the same start."""
    for _, one in cell.own:
        points = cell.points.get(one.concurrency, {}).get(one.repeat)
        if points is not None:
            beside_s = float(engine_speed([points], mixes=cell.mixes).beside_s[0])
            if (found := conditions.own_times(one, points.line, beside_s)) is not None:
                yield found
