"""Does all that had only been tested without a GPU work on this one? What `loadtest accept` reads off its runs.

A row passes or fails by the records; what this machine cannot show (a second GPU, a missing tool), and what no time was left
for, is `not run`, with why.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Literal

import msgspec

from loadtest.metrics.energy import joules
from loadtest.metrics.level_schema import LevelFigures, WindowSpan
from loadtest.metrics.schema import CellFigures, Metrics
from loadtest.perfmodel.prediction import Prediction
from loadtest.records.engine_facts import EngineFacts
from loadtest.records.read import CellRecords, LevelRecords, Run
from loadtest.records.schema import GpuSample, about

ENERGY_TOLERANCE = 0.1  # a share: NVML and nvidia-smi read one sensor, but not at the same moments
KV_TOLERANCE = 0.15  # a share: the engines keep room for graphs and workspaces that the arithmetic puts at a round figure
MEMORY_TOLERANCE_BYTES = 2**30  # NVML counts what the driver keeps for itself, nvidia-smi does not
SPECULATIVE, TOO_LARGE = "speculative", "too-large"  # names of cells
# as `servers.failure_causes` says it: a GPU's memory, and what a simulator says instead
_OUT_OF_MEMORY = ("CUDA out of memory", "KV cache is too small")
_BOTH = "both engines"
_LEFT_OUT = ("skipped", "interrupted")  # of cells: no fault of the engine's
_STARTED = "ready, measured and stopped"
_SPLIT_BY_SERVER = ("reasoning", "reasoning_content")

Result = Literal["pass", "fail", "not run"]


class AcceptanceRow(msgspec.Struct, frozen=True):
    """One row of the table: the check, its cell, what was expected and what was found."""

    check: str
    of: str
    expected: str
    got: str
    result: Result


class AcceptanceReport(msgspec.Struct, frozen=True, kw_only=True):
    """`acceptance.json`: the table, and what stands in no run: what nvidia-smi told meanwhile."""

    loadtest: Annotated[str, about("The version that wrote it.")]
    gpus: Annotated[tuple[str, ...], about("Names of this machine's GPUs, by nvidia-smi.")]
    rows: tuple[AcceptanceRow, ...]
    nvidia_smi: Annotated[tuple[GpuSample, ...], about("Its readings; `clock_anchor_unix_s` is the time of each.")]


@dataclass(frozen=True, slots=True)
class GpusHere:
    """This machine's GPUs before anything is started: their names by nvidia-smi, how many NVML counts (None: no bindings;
    0: no driver), and the registry's name of the first (None: not known)."""

    names: tuple[str, ...] = ()
    by_nvml: int | None = None
    known: str | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of an acceptance: its run and figures, or the reason that it has no run."""

    title: str
    run: Run | None = None
    metrics: Metrics | None = None
    reason: str = ""
    of: str = _BOTH


def checks(
    stages: Sequence[Stage],
    gpus: GpusHere,
    predicted: Mapping[str, Prediction],
    smi: Sequence[GpuSample],
) -> tuple[AcceptanceRow, ...]:
    """Every row: the machine; each cell in the order in which an engine is used (start, settings, tokens, memory, power,
    speed), or what became of it; both engines; the GPUs throughout.

    `predicted`: by cell, one request at a time. `smi`: what nvidia-smi told from before the first start to after the last.
    """
    rows = [_gpus(gpus)]
    for stage in stages:
        if stage.run is None or stage.metrics is None:
            rows.append(AcceptanceRow(stage.title, stage.of, _STARTED, stage.reason, "not run"))
        else:
            rows += _of_run(stage.run, stage.metrics, predicted, gpus)
    levels = [level for stage in stages if stage.run for cell in stage.run.cells for level in cell.levels]
    return (*rows, _energy(levels, smi), _memory(levels, smi), _given_back(smi))


def _gpus(gpus: GpusHere) -> AcceptanceRow:
    title, of, expected = "GPUs", "this machine", "as many by NVML as by nvidia-smi"
    if not gpus.names and not gpus.by_nvml:
        return AcceptanceRow(title, of, expected, "no GPU", "not run")
    kinds = dict.fromkeys(gpus.names)
    named = ", ".join(f"{gpus.names.count(kind)} x {kind}" for kind in kinds) or "none by nvidia-smi"
    nvml = "has no bindings (the extra gpu)" if gpus.by_nvml is None else f"counts {gpus.by_nvml}"
    result: Result = "pass" if gpus.by_nvml == len(gpus.names) else "fail"
    return AcceptanceRow(title, of, expected, f"{named} ({gpus.known or 'not in the registry'}); NVML {nvml}", result)


# Cells ---------------------------------------------------------------------------------------------------------------


def _of_run(run: Run, metrics: Metrics, predicted: Mapping[str, Prediction], gpus: GpusHere) -> Iterator[AcceptanceRow]:
    records, figures = {cell.id: cell for cell in run.cells}, {cell.id: cell for cell in metrics.cells}
    ordinary = False
    for asked in run.manifest.cells:
        if asked.id not in records or asked.id not in figures:
            reason = run.manifest.incomplete_reason or "not started"
            yield AcceptanceRow("start and stop", asked.id, _STARTED, reason, "not run")
            continue
        found, cell = records[asked.id], figures[asked.id]
        if found.engine.name == SPECULATIVE:
            yield _speculation(cell)
        elif found.engine.name == TOO_LARGE:
            yield from _too_large(found)
        else:
            ordinary = True
            yield from _of_cell(cell, found, predicted.get(cell.id), gpus)
    if ordinary and run.manifest.repeats != 1:
        yield from _of_both(metrics)


def _of_cell(
    cell: CellFigures, records: CellRecords, predicted: Prediction | None, gpus: GpusHere
) -> Iterator[AcceptanceRow]:
    facts = records.engine
    yield _start(cell, facts)
    if not cell.levels:
        return
    yield _settings(cell, facts)
    yield _thinking(records)
    yield _tokens(cell)
    yield _kv_cache(cell, facts)
    yield _power(cell, gpus)
    yield _speed(cell.level(1), cell.id, predicted)


def _start(cell: CellFigures, facts: EngineFacts) -> AcceptanceRow:
    started_s, ready_s = facts.started_unix_s, facts.ready_unix_s
    stopped = facts.stopped_unix_s is not None
    if cell.status == "ok" and ready_s is None:
        return AcceptanceRow("start and stop", cell.id, _STARTED, "nothing was started: virtual time", "not run")
    if cell.status in _LEFT_OUT and not (stopped and ready_s and cell.levels):
        return AcceptanceRow("start and stop", cell.id, _STARTED, str(cell.reason), "not run")
    if cell.status not in ("ok", *_LEFT_OUT) or started_s is None or ready_s is None or not stopped:
        return AcceptanceRow("start and stop", cell.id, _STARTED, f"{cell.status}: {cell.reason}", "fail")
    took = f"{facts.engine_version or 'unknown version'}, ready after {ready_s - started_s:.0f} s"
    cut = "" if cell.status == "ok" else f"; {cell.reason}"
    return AcceptanceRow("start and stop", cell.id, _STARTED, f"{took}, exit code {facts.exit_code}{cut}", "pass")


def _settings(cell: CellFigures, facts: EngineFacts) -> AcceptanceRow:
    contract = facts.contract
    expected = "no setting that differs from what was asked"
    if contract is None or not contract.effective:
        return AcceptanceRow("settings", cell.id, expected, "the engine tells none", "not run")
    told = f"{len(contract.effective)} of {len(contract.requested)} visible"
    wrong = "; ".join(contract.violations)
    return AcceptanceRow("settings", cell.id, expected, wrong or f"{told}, none differs", "fail" if wrong else "pass")


def _thinking(cell: CellRecords) -> AcceptanceRow:
    """Does the engine's parser hand the thinking over apart from the answer?"""
    title, expected = "thinking", "in a field of its own, by the engine's parser"
    requests = [one for level in cell.levels for one in level.requests if one.outcome in ("ok", "truncated")]
    fields = [one.thinking_field for one in requests if one.thinking_field is not None]
    if not fields:
        return AcceptanceRow(title, cell.id, expected, f"none in {len(requests)} answers", "not run")
    apart = sum(one in _SPLIT_BY_SERVER for one in fields)
    followed = sum(one.first_answer_chunk is not None and one.thinking_field is not None for one in requests)
    got = f"{', '.join(dict.fromkeys(fields))} in {len(fields)} of {len(requests)} answers, {followed} went on to an answer"
    return AcceptanceRow(title, cell.id, expected, got, "pass" if apart == len(fields) else "fail")


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
        why = "the GPU or the model is not known" if cell.fit is None else "the engine does not tell"
        return AcceptanceRow("KV cache", cell.id, "the size that `loadtest fit` computes", why, "not run")
    planned = cell.fit.kv_capacity_tokens
    close = planned > 0 and abs(told / planned - 1) <= KV_TOLERANCE
    expected = f"{planned} tokens, within {KV_TOLERANCE:.0%}"
    return AcceptanceRow("KV cache", cell.id, expected, f"{told} tokens", "pass" if close else "fail")


def _power(cell: CellFigures, gpus: GpusHere) -> AcceptanceRow:
    title, expected = "power by NVML", "joules per output token at every level"
    known = [level for level in cell.levels if level.joules_per_output_token.known]
    if not known:
        here = bool(gpus.names or gpus.by_nvml)
        return AcceptanceRow(title, cell.id, expected, "no power was read", "fail" if here else "not run")
    values = ", ".join(f"{one.joules_per_output_token.value:.3g} J" for one in known)
    result: Result = "pass" if len(known) == len(cell.levels) else "fail"
    return AcceptanceRow(title, cell.id, expected, f"{values} ({len(known)} of {len(cell.levels)} levels)", result)


def _speed(level: LevelFigures | None, cell: str, predicted: Prediction | None) -> AcceptanceRow:
    title = "time per token, one user"
    if predicted is None or predicted.tpot_s is None or level is None or level.tpot_s.mean is None:
        why = "the GPU or the model is not known" if predicted is None else "not measured"
        return AcceptanceRow(title, cell, "inside the predicted range", why, "not run")
    low, high, got = predicted.tpot_s.low, predicted.tpot_s.high, level.tpot_s.mean
    expected = f"{1000 * low:.2f} to {1000 * high:.2f} ms (predicted {1000 * predicted.tpot_s.value:.2f})"
    return AcceptanceRow(title, cell, expected, f"{1000 * got:.2f} ms", "pass" if low <= got <= high else "fail")


def _of_both(metrics: Metrics) -> Iterator[AcceptanceRow]:
    """Of each pair of engines: is there a decision, and how much do starts of one server differ."""
    expected = "a verdict with its interval, from two starts of each"
    if not metrics.decisions:
        yield AcceptanceRow("decision", _BOTH, expected, "one engine was measured", "not run")
    for one in metrics.decisions:
        of = f"{one.a} / {one.b}"
        interval = f"{one.ratio.low:.3f} to {one.ratio.high:.3f}" if one.ratio.low is not None else "none"
        decided = one.verdict in ("faster", "slower", "equal", "undecided") and one.ratio.low is not None
        reason = "" if decided else f": {one.reason}"
        got = f"{one.verdict}{reason}, 95 % CI {interval}"
        yield AcceptanceRow("decision", of, expected, got, "pass" if decided else "fail")
        known = one.start_sd is not None
        got = f"{one.start_sd:.2%}" if one.start_sd is not None else "one start each"
        yield AcceptanceRow("start-to-start variation", of, "measured", got, "pass" if known else "fail")


# What must work beside, and what must be refused ---------------------------------------------------------------------


def _speculation(cell: CellFigures) -> AcceptanceRow:
    expected = "drafts are made, and counted by the engine"
    if cell.status in _LEFT_OUT:
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
        why = str(facts.reason) if facts.status in _LEFT_OUT else "the GPU is not known"
        yield AcceptanceRow("refusal", records.id, planned, why, "not run")
    else:
        yield AcceptanceRow(
            "refusal", records.id, planned, fit.reason or "it says that it fits", "fail" if fit.fits else "pass"
        )
    expected = "started all the same, the engine says that memory is short"
    if facts.status in (*_LEFT_OUT, "refused"):
        yield AcceptanceRow("out of memory", records.id, expected, str(facts.reason), "not run")
        return
    named = any(words.lower() in (facts.reason or "").lower() for words in _OUT_OF_MEMORY)
    result: Result = "pass" if facts.status in ("failed", "died") and named else "fail"
    yield AcceptanceRow("out of memory", records.id, expected, f"{facts.status}: {facts.reason}", result)


# The GPUs throughout: NVML and nvidia-smi ----------------------------------------------------------------------------


def _energy(levels: Sequence[LevelRecords], smi: Sequence[GpuSample]) -> AcceptanceRow:
    """The energy of all repeats by both, over the times that both cover."""
    title, expected = "joules against nvidia-smi", f"within {ENERGY_TOLERANCE:.0%}"
    pairs = [pair for level in levels if level.gpu for pair in [_two_energies(level.gpu, smi)] if pair is not None]
    if not pairs:
        result: Result = "fail" if smi and levels else "not run"
        return AcceptanceRow(title, "all cells", expected, "no time at which both were read", result)
    ours, theirs = (sum(one[side] for one in pairs) for side in (0, 1))
    close = theirs > 0 and abs(ours / theirs - 1) <= ENERGY_TOLERANCE
    got = f"NVML {ours:.0f} J, nvidia-smi {theirs:.0f} J over {len(pairs)} repeats"
    return AcceptanceRow(title, "all cells", expected, got, "pass" if close else "fail")


def _two_energies(ours: Sequence[GpuSample], smi: Sequence[GpuSample]) -> tuple[float, float] | None:
    """Joules (NVML, nvidia-smi) of the GPUs that NVML read, from 1 s after its first reading to 1 s before its last."""
    at_s = [one.t_s for one in ours]
    span = WindowSpan(min(at_s) + 1.0, max(at_s) - 1.0)
    theirs = _of_same_gpus(smi, ours)
    if span.end_s <= span.start_s or not theirs:
        return None
    anchor = ours[0].clock_anchor_unix_s
    one, other = joules(ours, span, anchor), joules(theirs, span, anchor)
    return None if one is None or other is None else (one, other)


def _of_same_gpus(smi: Iterable[GpuSample], ours: Iterable[GpuSample]) -> list[GpuSample]:
    """CUDA_VISIBLE_DEVICES narrows what NVML is asked for; nvidia-smi reads every GPU."""
    known = {one.gpu for one in ours}
    return [one for one in smi if one.gpu in known]


def _memory(levels: Sequence[LevelRecords], smi: Sequence[GpuSample]) -> AcceptanceRow:
    """The most memory that each GPU used while requests were sent, by both."""
    title, expected = "memory against nvidia-smi", f"within {_gb(MEMORY_TOLERANCE_BYTES)} on each GPU"
    ours = list(chain.from_iterable(level.gpu for level in levels))
    spans = [(_unix_s(level.gpu[0]) - 1, _unix_s(level.gpu[-1]) + 1) for level in levels if level.gpu]
    meanwhile = [one for one in smi if any(begin <= _unix_s(one) <= end for begin, end in spans)]
    mine, theirs = _most_bytes(ours), _most_bytes(_of_same_gpus(meanwhile, ours))
    both = sorted(mine.keys() & theirs.keys())
    if not both:
        result: Result = "fail" if smi and levels else "not run"
        return AcceptanceRow(title, "all cells", expected, "no time at which both were read", result)
    got = "; ".join(f"GPU {one}: NVML {_gb(mine[one])}, nvidia-smi {_gb(theirs[one])}" for one in both)
    close = all(abs(mine[one] - theirs[one]) <= MEMORY_TOLERANCE_BYTES for one in both)
    return AcceptanceRow(title, "all cells", expected, got, "pass" if close else "fail")


def _given_back(smi: Sequence[GpuSample]) -> AcceptanceRow:
    """After the last engine, is a GPU's memory as free as before the first?"""
    title, expected = "memory given back", f"at most {_gb(MEMORY_TOLERANCE_BYTES)} more in use than before the first start"
    used: dict[int, list[int]] = defaultdict(list)
    for one in sorted(smi, key=_unix_s):
        if one.memory_used_bytes is not None:
            used[one.gpu].append(one.memory_used_bytes)
    if not used:
        return AcceptanceRow(title, "all cells", expected, "nvidia-smi tells none", "not run")
    got = "; ".join(f"GPU {gpu}: {_gb(each[0])} before, {_gb(each[-1])} after" for gpu, each in sorted(used.items()))
    kept = any(each[-1] - each[0] > MEMORY_TOLERANCE_BYTES for each in used.values())
    return AcceptanceRow(title, "all cells", expected, got, "fail" if kept else "pass")


def _most_bytes(samples: Iterable[GpuSample]) -> dict[int, int]:
    """By GPU."""
    most: dict[int, int] = {}
    for one in samples:
        if one.memory_used_bytes is not None:
            most[one.gpu] = max(most.get(one.gpu, 0), one.memory_used_bytes)
    return most


def _unix_s(one: GpuSample) -> float:
    return one.clock_anchor_unix_s + one.t_s / one.clock_speed


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"
