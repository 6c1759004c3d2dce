"""Results of AIPerf: `profile_export.jsonl`, an object for each request, and `profile_export_aiperf.json` beside it, the
totals and what was asked; the totals alone can be imported too."""

from __future__ import annotations

from typing import Any

import msgspec

from loadtest.records.peers.result import (
    PeerArrivals,
    PeerFile,
    PeerPass,
    PeerRequest,
    PeerResult,
    Reader,
    at,
    count_at,
    figures_of,
    is_number,
    open_file,
    text_at,
)

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "sec": 1.0, "s": 1.0}
_STATISTICS = ("avg", "p50", "p90", "p99", "min", "max")
_ASKED = frozenset({"input_config", "telemetry_data", "run_info", "error_summary"})


class _Metadata(msgspec.Struct):
    request_start_ns: int | None = None
    benchmark_phase: str | None = None
    was_cancelled: bool = False


class _Error(msgspec.Struct):
    type: str | None = None
    message: str | None = None


class _Record(msgspec.Struct):
    metadata: _Metadata
    metrics: dict[str, Any] = {}
    error: _Error | None = None


def _read(file: PeerFile) -> PeerResult:
    records = [one for one in file.of(_Record) if one.metadata.benchmark_phase in (None, "profiling")]
    zero_ns = min((one.metadata.request_start_ns for one in records if one.metadata.request_start_ns is not None), default=0)
    totals = file.beside(f"{file.path.stem}_aiperf.json")
    return _result(totals, tuple(_request(one, zero_ns) for one in records))


def _read_totals(file: PeerFile) -> PeerResult:
    """The result of a summary, with the requests of the file beside it if that exists."""
    requests = file.path.with_name(f"{file.path.stem.removesuffix('_aiperf')}.jsonl")
    if requests.is_file() and requests != file.path:
        return _read(open_file(requests))
    return _result(file.documents[0], ())


def _result(totals: dict[str, Any], requests: tuple[PeerRequest, ...]) -> PeerResult:
    asked = at(totals, "input_config")
    phase = next((one for one in at(asked, "phases") or [] if at(one, "kind") in (None, "profiling")), None)
    rate = at(phase, "rate")
    one = PeerPass(
        concurrency=count_at(phase, "concurrency") or count_at(asked, "loadgen", "concurrency"),
        requests=requests,
        figures=figures_of({name: _shown(each) for name, each in totals.items() if name not in _ASKED}),
        arrivals=PeerArrivals(text_at(phase, "type") or "unknown", rate) if is_number(rate) else None,
        date=text_at(totals, "start_time"),
    )
    model = text_at(asked, "models", "items", 0, "name") or text_at(asked, "endpoint", "model_names", 0)
    return PeerResult(passes=(one,), version=text_at(totals, "aiperf_version"), model=model)


def _shown(metric: Any) -> Any:
    """The statistics of a metric that most readers ask for."""
    return {name: metric[name] for name in _STATISTICS if name in metric} if isinstance(metric, dict) else metric


def _request(one: _Record, zero_ns: int) -> PeerRequest:
    start_ns = one.metadata.request_start_ns
    start_s = None if start_ns is None else (start_ns - zero_ns) * 1e-9
    if one.error is not None or one.metadata.was_cancelled:
        said = one.error or _Error(message="cancelled")
        return PeerRequest(start_s=start_s, error=f"{said.type or ''} {said.message or ''}".strip() or "no reason told")
    first_s = _seconds(one.metrics, "time_to_first_token")
    gaps = at(one.metrics, "inter_chunk_latency", "value")
    unit_s = _UNITS_S.get(str(at(one.metrics, "inter_chunk_latency", "unit")))
    return PeerRequest(
        start_s=start_s,
        first_s=first_s,
        answer_s=_seconds(one.metrics, "time_to_first_output_token"),
        end_s=_seconds(one.metrics, "request_latency"),
        gaps_s=_gaps_s(gaps, unit_s),
        prompt_tokens=_count(one.metrics, "input_sequence_length"),
        output_tokens=_count(one.metrics, "output_sequence_length"),
        reasoning_tokens=_count(one.metrics, "reasoning_token_count"),
    )


def _gaps_s(gaps: Any, unit_s: float | None) -> tuple[float, ...] | None:
    if unit_s is None or not isinstance(gaps, list) or not all(map(is_number, gaps)):
        return None
    return tuple(one * unit_s for one in gaps)


def _seconds(metrics: dict[str, Any], name: str) -> float | None:
    value, unit_s = at(metrics, name, "value"), _UNITS_S.get(str(at(metrics, name, "unit")))
    return value * unit_s if is_number(value) and unit_s is not None else None


def _count(metrics: dict[str, Any], name: str) -> int | None:
    value = at(metrics, name, "value")
    return value if is_number(value) and isinstance(value, int) else None


AIPERF = Reader(
    tool="AIPerf",
    written_by="aiperf profile: profile_export.jsonl",
    keys=frozenset({"metadata", "metrics"}),
    read=_read,
    notes=(
        "Its gaps are between chunks; how many tokens each carried is not told, so gaps between tokens are unknown.",
        "Thinking is what came in a field of its own; inline thinking counts as answer.",
    ),
)
AIPERF_TOTALS = Reader(
    tool=AIPERF.tool,
    written_by="aiperf profile: profile_export_aiperf.json",
    keys=frozenset({"aiperf_version", "input_config"}),
    read=_read_totals,
    notes=AIPERF.notes,
)
