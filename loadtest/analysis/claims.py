"""Published claims as data (reports/findings/*.toml), and what a run says of each.

Verdicts: `reproduced`, `contradicted`; of simulated cells `predicted`, `not_predicted`; of both `undecided`, where the
interval holds both answers, and `not_measured`. A claim of an absolute value is judged only on the GPUs it was made of;
elsewhere its roofline share stands in the reason.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from loadtest.analysis.validity import unsound_reasons
from loadtest.errors import UsageError
from loadtest.metrics import intervals
from loadtest.metrics.catalogue import METRICS, Statistic, statistics_of
from loadtest.metrics.figures import Bounded, Estimate, Interval, OpenInterval
from loadtest.metrics.schema import CellFigures, ClaimKind, ClaimResult, Comparison, FindingVerdict, PairDecision
from loadtest.perfmodel import models


class _Judgement(NamedTuple):
    """What the cells say of a claim: held or not (None: not judged), the figure that says so, and the cells. `undecided`:
    it was measured, and its interval holds both answers."""

    held: bool | None
    measured: float | str | None
    ci95: OpenInterval | None
    reason: str
    cells: Sequence[CellFigures]
    undecided: bool = False


def _unjudged(reason: str, cells: Sequence[CellFigures] = ()) -> _Judgement:
    return _Judgement(None, None, None, reason, cells)


class Claim(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One published claim; `tolerance` is relative, `because` its reason; empty `gpus`: judged on any GPU. `endpoint`: only
    of a server whose host's name ends so. `source`: who says so, where it is not the file's."""

    id: str
    claim: str
    expected: str
    kind: ClaimKind
    because: str
    model: str = ""
    tp: int = 0
    concurrency: int = 1
    metric: str = ""
    statistic: Statistic = "mean"
    value: float = 0.0
    tolerance: float = 0.0
    gpus: tuple[str, ...] = ()
    endpoint: str = ""
    source: str = ""


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    title: str
    source: str
    claims: tuple[Claim, ...]
    note: str = ""


def parse_claims(raw: bytes, where: str) -> tuple[Claim, ...]:
    """Claims of a TOML file (`where` names it), in its order. Raises UsageError: a key is wrong (named)."""
    try:
        found = msgspec.toml.decode(raw, type=_File)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise UsageError(f"{where}: expected title, source and [[claims]]: {error}") from error
    ids = [claim.id for claim in found.claims]
    double = next((name for name in ids if ids.count(name) > 1), None)
    if double:
        raise UsageError(f"{where}: claims.id: expected each id once, got {double!r} twice")
    for claim in found.claims:
        _check_figure(claim, where)
    return found.claims


def _check_figure(claim: Claim, where: str) -> None:
    """A claim of a figure names a metric that has its statistic."""
    if claim.kind not in ("value", "gain", "ahead"):
        return
    if claim.metric not in METRICS:
        raise UsageError(f"{where}: claim {claim.id}: metric: expected one of {', '.join(METRICS)}, got {claim.metric!r}")
    known = statistics_of(claim.metric)
    if claim.kind != "ahead" and claim.statistic not in known:
        expected = " or ".join(known)
        raise UsageError(
            f"{where}: claim {claim.id}: statistic: expected {expected} of {claim.metric}, got {claim.statistic!r}"
        )


def judge_claims(
    claims: Sequence[Claim],
    cells: Sequence[CellFigures],
    comparisons: Sequence[Comparison],
    decisions: Sequence[PairDecision] = (),
) -> tuple[ClaimResult, ...]:
    """What cells, comparisons and composed decisions say of each claim."""
    rows: list[_Scenario] = [
        *comparisons,
        *(one for one in decisions if one.evidence == "composed" and one.ratio.ci95 is not None),
    ]
    return tuple(_result(claim, _judged(claim, cells, rows)) for claim in claims)


_Scenario = Comparison | PairDecision


def _judged(claim: Claim, cells: Sequence[CellFigures], comparisons: Sequence[_Scenario]) -> _Judgement:
    match claim.kind:
        case "value":
            return _value(claim, cells)
        case "fit":
            return _fit(claim, cells)
        case "weights":
            return _weights(claim, cells)
        case "maximum_concurrency":
            return _maximum(claim, cells)
        case "gain":
            return _gain(claim, cells)
        case "ahead":
            return _ahead(claim, cells, comparisons)


def _result(claim: Claim, found: _Judgement) -> ClaimResult:
    simulated = any(cell.simulated for cell in found.cells)
    return ClaimResult(
        id=claim.id,
        claim=claim.claim,
        expected=claim.expected,
        measured=found.measured,
        ci95=found.ci95,
        kind=claim.kind,
        metric=claim.metric,
        verdict=_verdict(found, predicted=simulated or claim.kind == "weights"),
        simulated=simulated,
        reason=found.reason,
        cells=tuple(cell.id for cell in found.cells),
    )


def _verdict(found: _Judgement, *, predicted: bool) -> FindingVerdict:
    if found.held is None:
        return "undecided" if found.undecided else "not_measured"
    if predicted:
        return "predicted" if found.held else "not_predicted"
    return "reproduced" if found.held else "contradicted"


def _model(cell: CellFigures) -> str:
    return str(cell.model).rstrip("/").rsplit("/", 1)[-1].lower()


def _chosen(claim: Claim, cells: Sequence[CellFigures]) -> list[CellFigures]:
    """Cells of the claim's model and number of GPUs (any number where it names none); where it names an endpoint, those
    that were measured there, whose name for the model may have the vendor before it."""
    if claim.endpoint:
        there = [cell for cell in cells if (cell.endpoint or "").endswith(claim.endpoint)]
        return [cell for cell in there if _model(cell).endswith(claim.model)]
    return [cell for cell in cells if _model(cell) == claim.model and claim.tp in (0, cell.tp)]


def _where(claim: Claim) -> str:
    gpus = f" on {claim.tp} GPU(s)" if claim.tp else ""
    kind = f" of {_either(claim.gpus)}" if claim.gpus else ""
    return f"{claim.model}{gpus}{kind}{f' at {claim.endpoint}' if claim.endpoint else ''}"


def _either(names: Sequence[str]) -> str:
    return " or ".join(names)


def _at(claim: Claim, cell: CellFigures) -> Bounded | None:
    """The figure of a claim in a cell: composed where a decision composed it, else of a sound level."""
    made = next((one for one in cell.usable if one.concurrency == claim.concurrency and not unsound_reasons(one)), None)
    if made is not None and (found := made.estimate(claim.metric, claim.statistic)) is not None:
        return found
    level = cell.level(claim.concurrency)
    return None if level is None or unsound_reasons(level) else level.estimate(claim.metric, claim.statistic)


class _Figure(NamedTuple):
    """The figure of a claim in one cell, which has an interval."""

    cell: CellFigures
    value: float
    ends: Interval
    composed: bool = False

    def __str__(self) -> str:
        share = self.cell.roofline.reached_share
        bound = "" if share is None or share.value is None else f", {share.value:.0%} of the bound"
        how = ", composed" if self.composed else ""
        return f"{self.cell.engine} {self.value:.4g} [{self.ends[0]:.4g}, {self.ends[1]:.4g}]{how}{bound}"


def _figures(claim: Claim, cells: Sequence[CellFigures]) -> list[_Figure]:
    found = [(cell, _at(claim, cell)) for cell in cells]
    return [
        _Figure(cell, one.value, (one.low, one.high), composed=not isinstance(one, Estimate))
        for cell, one in found
        if one is not None and one.value is not None and one.low is not None and one.high is not None
    ]


def _value(claim: Claim, cells: Sequence[CellFigures]) -> _Judgement:
    """The best engine's figure against the claim's band. Held: its whole interval is inside; not held: all of it is outside;
    else undecided."""
    chosen = _chosen(claim, cells)
    measured = _figures(claim, chosen)
    if not measured:
        missing = f"no sound figure with an interval at concurrency {claim.concurrency}" if chosen else "no cell"
        return _unjudged(f"{missing} of {_where(claim)}; {claim.because}")
    best = max(measured, key=lambda one: one.value)
    cell, value, ends = best.cell, best.value, best.ends
    each = "; ".join(str(one) for one in sorted(measured, key=lambda one: one.cell.id))
    used = [one.cell for one in measured]
    if claim.gpus and cell.gpu not in claim.gpus:
        reason = f"claimed of {_either(claim.gpus)}, measured on {cell.gpu or 'an unknown GPU'}: {each}"
        return _Judgement(None, value, ends, reason, used)
    low, high = claim.value * (1 - claim.tolerance), claim.value * (1 + claim.tolerance)
    band = f"band {low:.4g} to {high:.4g} ({claim.because}): {each}"
    held = True if low <= ends[0] and ends[1] <= high else False if ends[1] < low or high < ends[0] else None
    return _Judgement(held, value, ends, band, used, undecided=held is None)


def _fit(claim: Claim, cells: Sequence[CellFigures]) -> _Judgement:
    """`value` 0: does not fit. By what the cell did: refused by the arithmetic, ended out of memory, or served."""
    found = [cell for cell in _chosen(claim, cells) if not claim.gpus or cell.gpu in claim.gpus]
    if not found:
        return _unjudged(f"no cell of {_where(claim)}; {claim.because}")
    cell = next((one for one in found if one.levels or one.composed), found[0])
    reason = cell.reason or ("" if cell.fit is None else cell.fit.reason)
    if cell.levels or cell.composed:
        return _Judgement(claim.value > 0, "served", None, f"{cell.id} was served", found)
    if cell.status == "refused" or (cell.fit is not None and not cell.fit.fits):
        return _Judgement(claim.value == 0, "refused", None, f"refused by arithmetic before a start: {reason}", found)
    if "memory" in reason.lower():
        return _Judgement(claim.value == 0, "out of memory", None, reason, found)
    return _unjudged(reason or "the cell was neither refused nor measured", found)


def _weights(claim: Claim, cells: Sequence[CellFigures]) -> _Judgement:
    """Bytes of the weights over all GPUs against the claim's band: by the arithmetic of the fit, so a prediction."""
    found = [(cell, cell.fit) for cell in _chosen(claim, cells) if cell.fit is not None]
    if not found:
        return _unjudged(f"no cell of {_where(claim)} whose fit was counted; {claim.because}")
    cell, fit = found[0]
    weights = fit.weight_bytes_per_card * (cell.tp or 1)
    reason = f"{weights / 1e9:.3g} GB of weights by arithmetic; what the engine used was not read; {claim.because}"
    return _Judgement(abs(weights / claim.value - 1) <= claim.tolerance, weights, None, reason, [cell])


def _maximum(claim: Claim, cells: Sequence[CellFigures]) -> _Judgement:
    """The highest concurrency within the SLOs, best of the chosen cells, against `value` or below."""
    chosen = [cell for cell in _chosen(claim, cells) if cell.levels or cell.composed]
    if not chosen:
        return _unjudged(f"no level of {claim.model} was measured")
    known = [(cell.maximum_concurrency.by_slo, cell.id, cell) for cell in chosen]
    judged = [(best, name, cell) for best, name, cell in known if best is not None]
    if not judged:
        return _unjudged(str(chosen[0].maximum_concurrency.reason), chosen)
    best, _, cell = max(judged, key=lambda one: one[:2])
    used = [one for _, _, one in judged]
    found = cell.maximum_concurrency
    top = max([level.concurrency for level in cell.levels] + [level.concurrency for level in cell.usable])
    said = f"{cell.id}: {best} within the SLOs, tried up to {top}, KV cache holds {found.by_kv_cache} full contexts"
    if claim.gpus and cell.gpu not in claim.gpus:
        return _Judgement(None, best, found.ci95, f"claimed of {_either(claim.gpus)}, measured on {cell.gpu}; {said}", used)
    if best == 0:
        reason = f"not even the lowest level is within the SLOs ({found.binds}); {said}"
        return _Judgement(None, best, found.ci95, reason, used)
    if best <= claim.value and best == top:
        return _Judgement(None, best, None, f"no level broke an SLO, and none above {top} was tried; {said}", used)
    limit = f"{found.binds} breaks above" if found.binds else "no level broke an SLO"
    return _Judgement(best <= claim.value, best, found.ci95, f"{said}; {limit}; {claim.because}", used)


def _ahead(claim: Claim, cells: Sequence[CellFigures], comparisons: Sequence[_Scenario]) -> _Judgement:
    """Share of scenarios in which SGLang's verdict is "faster"; not held where "slower" has at least half of them. A pair
    that bursts decide is one scenario. Where the claim names GPUs, what others did is told and not judged."""
    families = {cell.id: cell.family for cell in cells}
    composed = [row for row in comparisons if isinstance(row, PairDecision)]
    levels = [row for row in comparisons if not isinstance(row, PairDecision)]
    rows: list[_Scenario] = [row for row in levels if row.metric == claim.metric and row.p_value is not None]
    rows = [*composed] or rows
    rows = [row for row in rows if (families[row.a], families[row.b]) == ("sglang", "vllm")]
    if not rows:
        return _unjudged("no scenario with a verdict between SGLang and vLLM")
    claimed = [row for row in rows if not claim.gpus or row.gpu in claim.gpus]
    elsewhere = "" if claimed else _either(sorted({row.gpu or "an unknown GPU" for row in rows}))
    rows = claimed or rows
    used = [cell for cell in cells if any(cell.id in (row.a, row.b) for row in rows)]
    faster, slower = (sum(row.verdict == word for row in rows) for word in ("faster", "slower"))
    found = intervals.share(faster, len(rows))
    neither = len(rows) - faster - slower
    how = f"pairs by composed {composed[0].metric}" if composed else f"scenarios by {claim.metric}"
    reason = f"faster in {faster}, slower in {slower}, neither in {neither} of {len(rows)} {how}"
    if any(cell.simulated for cell in used):
        reason = f"the simulator treats both engines alike where no difference between them is known; {reason}"
    if elsewhere:
        reason = f"claimed of {_either(claim.gpus)}, measured on {elsewhere}: {reason}"
        return _Judgement(None, found.value, found.ci95, reason, used)
    held = True if faster > claim.value * len(rows) else False if slower >= claim.value * len(rows) else None
    return _Judgement(held, found.value, found.ci95, reason, used, undecided=held is None)


def _gain(claim: Claim, cells: Sequence[CellFigures]) -> _Judgement:
    """Speed-up of two GPUs over one for the most against the least demanding model of one engine: their log-ratio."""
    speeds: dict[tuple[str, str], dict[str, tuple[_Figure, _Figure]]] = defaultdict(dict)
    for one in cells:
        two = next((c for c in cells if _place(c) == _place(one) and (one.tp, c.tp) == (1, 2)), None)
        if two is not None and len(both := _figures(claim, (one, two))) == 2:
            speeds[one.engine, str(one.gpu)][_model(one)] = (both[0], both[1])
    found = [(engine, by_model) for (engine, _), by_model in sorted(speeds.items()) if len(by_model) > 1]
    if not found:
        return _unjudged(claim.because)
    engine, by_model = found[0]
    ordered = sorted(by_model, key=_demand)
    (small, small_error), (large, large_error) = (_log_gain(*by_model[name]) for name in (ordered[0], ordered[-1]))
    half = intervals.Z * math.hypot(small_error, large_error)
    ends = (math.exp(large - small - half), math.exp(large - small + half))
    reason = f"{engine}: {math.exp(large):.3g}x for {ordered[-1]}, {math.exp(small):.3g}x for {ordered[0]}; their ratio"
    held = True if ends[0] > 1 else False if ends[1] < 1 else None
    used = [one.cell for pair in by_model.values() for one in pair]
    return _Judgement(held, math.exp(large - small), ends, reason, used, undecided=held is None)


def _place(cell: CellFigures) -> tuple[str, str, str | None]:
    return cell.engine, _model(cell), cell.gpu


def _demand(name: str) -> float:
    try:
        return models.model(name).weight_bytes
    except UsageError:
        return 0.0


def _log_gain(one: _Figure, two: _Figure) -> tuple[float, float]:
    """log(two GPUs / one) and its standard error, from the intervals of the two figures."""
    errors = [(figure.ends[1] - figure.ends[0]) / (2 * intervals.Z * figure.value) for figure in (two, one)]
    return math.log(two.value) - math.log(one.value), math.sqrt(sum(error**2 for error in errors))
