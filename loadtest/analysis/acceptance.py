"""Does all that had only been tested without a GPU work on this one? What `loadtest accept` reads off its two runs.

A row passes or fails by the records; what this machine cannot show (a second GPU, a missing tool) is `not run`, with why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from loadtest.metrics.energy import joules
from loadtest.metrics.level_schema import LevelFigures, WindowSpan
from loadtest.metrics.schema import CellFigures, Metrics
from loadtest.perfmodel.prediction import Prediction
from loadtest.records.engine_facts import EngineFacts
from loadtest.records.read import CellRecords, LevelRecords, Run
from loadtest.records.schema import GpuSample

ENERGY_TOLERANCE = 0.1  # a share: NVML and nvidia-smi read one sensor, but not at the same moments
KV_TOLERANCE = 0.15  # a share: the engines keep room for graphs and workspaces that the arithmetic puts at a round figure
SPECULATIVE, TOO_LARGE = "speculative", "too-large"  # names of cells
_OUT_OF_MEMORY = ("CUDA out of memory", "KV cache is too small")  # as `servers.failure_causes` says it

Result = Literal["pass", "fail", "not run"]


class AcceptanceRow(msgspec.Struct, frozen=True):
    """One row of the table: the check, its cell, what was expected and what was found."""

    check: str
    of: str
    expected: str
    got: str
    result: Result


def checks(
    measured: tuple[Run, Metrics],
    extremes: tuple[Run, Metrics],
    predicted: Mapping[str, Prediction],
    smi: Sequence[GpuSample],
) -> tuple[AcceptanceRow, ...]:
    """Every row, in the order in which an engine is used: start, settings, tokens, memory, power, speed; then both engines;
    then what must fail.

    `predicted`: by cell, one request at a time. `smi`: what nvidia-smi told during the first run.
    """
    run, metrics = measured
    facts = {cell.id: cell.engine for cell in run.cells}
    rows: list[AcceptanceRow] = []
    for cell in metrics.cells:
        rows += _of_cell(cell, facts.get(cell.id), predicted.get(cell.id))
    rows.append(_energy([level for cell in run.cells for level in cell.levels], smi))
    rows += _of_both(metrics)
    return (*rows, *_of_extremes(*extremes))


def _of_cell(cell: CellFigures, facts: EngineFacts | None, predicted: Prediction | None) -> Iterator[AcceptanceRow]:
    yield _start(cell, facts)
    if facts is None or not cell.levels:
        return
    yield _settings(cell, facts)
    yield _tokens(cell)
    yield _kv_cache(cell, facts)
    yield _power(cell)
    yield _speed(cell.level(1), cell.id, predicted)


def _start(cell: CellFigures, facts: EngineFacts | None) -> AcceptanceRow:
    expected = "ready, measured and stopped"
    if cell.status == "skipped":
        return AcceptanceRow("start and stop", cell.id, expected, str(cell.reason), "not run")
    if cell.status != "ok" or facts is None or None in (facts.started_unix_s, facts.ready_unix_s, facts.stopped_unix_s):
        return AcceptanceRow("start and stop", cell.id, expected, f"{cell.status}: {cell.reason}", "fail")
    took_s = float(facts.ready_unix_s or 0) - float(facts.started_unix_s or 0)
    return AcceptanceRow(
        "start and stop", cell.id, expected, f"ready after {took_s:.0f} s, exit code {facts.exit_code}", "pass"
    )


def _settings(cell: CellFigures, facts: EngineFacts) -> AcceptanceRow:
    contract = facts.contract
    expected = "no setting that differs from what was asked"
    if contract is None or not contract.effective:
        return AcceptanceRow("settings", cell.id, expected, "the engine tells none", "not run")
    told = f"{len(contract.effective)} of {len(contract.requested)} visible"
    wrong = "; ".join(contract.violations)
    return AcceptanceRow("settings", cell.id, expected, wrong or f"{told}, none differs", "fail" if wrong else "pass")


def _tokens(cell: CellFigures) -> AcceptanceRow:
    found = [level.reconciliation for level in cell.levels]
    expected = "client and server count the same tokens"
    if any(one.status == "fail" for one in found):
        why = next(one.reasons[0] for one in found if one.status == "fail" and one.reasons)
        return AcceptanceRow("token counts", cell.id, expected, why, "fail")
    if all(one.status == "not_checked" for one in found):
        return AcceptanceRow("token counts", cell.id, expected, "the server tells none", "not run")
    n = sum(one.client_output_tokens or 0 for one in found)
    return AcceptanceRow("token counts", cell.id, expected, f"{n:.0f} tokens on both sides", "pass")


def _kv_cache(cell: CellFigures, facts: EngineFacts) -> AcceptanceRow:
    told = (facts.server_info or {}).get("kv_cache_tokens")
    if cell.fit is None or not isinstance(told, int):
        why = "the GPU is not known" if cell.fit is None else "the engine does not tell"
        return AcceptanceRow("KV cache", cell.id, "the size that `loadtest fit` computes", why, "not run")
    planned = cell.fit.kv_capacity_tokens
    close = planned > 0 and abs(told / planned - 1) <= KV_TOLERANCE
    expected = f"{planned} tokens, within {KV_TOLERANCE:.0%}"
    return AcceptanceRow("KV cache", cell.id, expected, f"{told} tokens", "pass" if close else "fail")


def _power(cell: CellFigures) -> AcceptanceRow:
    known = [level for level in cell.levels if level.joules_per_answer.known]
    expected = "joules per answer at every level"
    if not known:
        return AcceptanceRow("power by NVML", cell.id, expected, "no power was read", "fail")
    values = ", ".join(f"{one.joules_per_answer.value:.3g} J" for one in known)
    result: Result = "pass" if len(known) == len(cell.levels) else "fail"
    return AcceptanceRow("power by NVML", cell.id, expected, f"{values} ({len(known)} of {len(cell.levels)} levels)", result)


def _speed(level: LevelFigures | None, cell: str, predicted: Prediction | None) -> AcceptanceRow:
    title = "time per token, one user"
    if predicted is None or predicted.tpot_s is None or level is None or level.tpot_s.mean is None:
        why = "the GPU or the model is not known" if predicted is None else "not measured"
        return AcceptanceRow(title, cell, "inside the predicted range", why, "not run")
    low, high, got = predicted.tpot_s.low, predicted.tpot_s.high, level.tpot_s.mean
    expected = f"{1000 * low:.2f} to {1000 * high:.2f} ms (predicted {1000 * predicted.tpot_s.value:.2f})"
    return AcceptanceRow(title, cell, expected, f"{1000 * got:.2f} ms", "pass" if low <= got <= high else "fail")


def _energy(levels: Sequence[LevelRecords], smi: Sequence[GpuSample]) -> AcceptanceRow:
    """The energy of all repeats by both, over the times that both cover."""
    title, expected = "joules against nvidia-smi", f"within {ENERGY_TOLERANCE:.0%}"
    pairs = [pair for level in levels if level.gpu for pair in [_two_energies(level.gpu, smi)] if pair is not None]
    if not pairs:
        return AcceptanceRow(
            title, "all cells", expected, "no time at which both were read", "not run" if not smi else "fail"
        )
    ours, theirs = (sum(one[side] for one in pairs) for side in (0, 1))
    close = theirs > 0 and abs(ours / theirs - 1) <= ENERGY_TOLERANCE
    got = f"NVML {ours:.0f} J, nvidia-smi {theirs:.0f} J over {len(pairs)} repeats"
    return AcceptanceRow(title, "all cells", expected, got, "pass" if close else "fail")


def _two_energies(ours: Sequence[GpuSample], theirs: Sequence[GpuSample]) -> tuple[float, float] | None:
    """Joules (NVML, nvidia-smi) from one second after the first of NVML's readings to one before the last."""
    at_s = [one.t_s for one in ours]
    span = WindowSpan(min(at_s) + 1.0, max(at_s) - 1.0)
    if span.end_s <= span.start_s or not theirs:
        return None
    anchor = ours[0].clock_anchor_unix_s
    one, other = joules(ours, span, anchor), joules(theirs, span, anchor)
    return None if one is None or other is None else (one, other)


def _of_both(metrics: Metrics) -> Iterator[AcceptanceRow]:
    """Of each pair of engines: is there a decision, and how much do starts of one server differ."""
    expected = "a verdict with its interval, from two starts of each"
    if not metrics.decisions:
        yield AcceptanceRow("decision", "the engines", expected, "one engine was measured", "not run")
    for one in metrics.decisions:
        of = f"{one.a} / {one.b}"
        interval = f"{one.ratio.low:.3f} to {one.ratio.high:.3f}" if one.ratio.low is not None else "none"
        decided = one.verdict in ("faster", "slower", "equal", "undecided") and one.ratio.low is not None
        yield AcceptanceRow("decision", of, expected, f"{one.verdict}, 95 % CI {interval}", "pass" if decided else "fail")
        known = one.start_sd is not None
        got = f"{one.start_sd:.2%}" if one.start_sd is not None else "one start each"
        yield AcceptanceRow("start-to-start variation", of, "measured", got, "pass" if known else "fail")


def _of_extremes(run: Run, metrics: Metrics) -> Iterator[AcceptanceRow]:
    """What must work beside, and what must be refused."""
    for records, cell in _by_cell(run, metrics):
        if records.engine.name == SPECULATIVE:
            yield _speculation(records, cell)
        elif records.engine.name == TOO_LARGE:
            yield from _too_large(records)


def _by_cell(run: Run, metrics: Metrics) -> Iterator[tuple[CellRecords, CellFigures]]:
    figures = {cell.id: cell for cell in metrics.cells}
    yield from ((records, figures[records.id]) for records in run.cells if records.id in figures)


def _speculation(records: CellRecords, cell: CellFigures) -> AcceptanceRow:
    expected = "drafts are made, and counted by the engine"
    if cell.status == "skipped":
        return AcceptanceRow("speculative decoding", cell.id, expected, str(cell.reason), "not run")
    drafted = [level.server.speculation for level in cell.levels if level.server.speculation is not None]
    if cell.status != "ok" or not drafted:
        why = f"{cell.status}: {cell.reason or 'no draft counted'}"
        return AcceptanceRow("speculative decoding", cell.id, expected, why, "fail")
    got = f"{drafted[0].n_drafts:.0f} drafts, {drafted[0].accepted_length.value or 0:.2f} tokens a step"
    return AcceptanceRow("speculative decoding", cell.id, expected, got, "pass")


def _too_large(records: CellRecords) -> Iterator[AcceptanceRow]:
    facts = records.engine
    fit = facts.fit
    planned = "the arithmetic says that it does not fit"
    if fit is None:
        yield AcceptanceRow("refusal", records.id, planned, "the GPU is not known", "not run")
    else:
        yield AcceptanceRow(
            "refusal", records.id, planned, fit.reason or "it says that it fits", "fail" if fit.fits else "pass"
        )
    expected = "started all the same, the engine says that memory is short"
    if facts.status == "skipped":
        yield AcceptanceRow("out of memory", records.id, expected, str(facts.reason), "not run")
        return
    named = any(words.lower() in (facts.reason or "").lower() for words in _OUT_OF_MEMORY)
    result: Result = "pass" if facts.status in ("failed", "died") and named else "fail"
    yield AcceptanceRow("out of memory", records.id, expected, f"{facts.status}: {facts.reason}", result)
