"""Did the load generator itself distort the figures: the checks on its lag, CPU and clock."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Literal

import numpy as np

from loadtest.metrics import clock_error as clock_errors
from loadtest.metrics.intervals import Floats
from loadtest.metrics.level_schema import ClientHealth, HealthCheck, HealthCheckName
from loadtest.metrics.request_arrays import Ints, Pass, offset
from loadtest.records.engine_facts import ClockError
from loadtest.records.read import LevelRecords
from loadtest.records.schema import HealthSample, LateChunks, Priority, RequestRecord, ServerSample, StampSource

CPU_LIMIT = 0.9  # of one core, by one process

CPU_AIM = 0.6  # of one core, by one process: leaves room for bursts

OF_LOAD = (
    "loop_lag_mean",
    "loop_lag_worst",
    "first_token_bound",
    "gap_bound",
    "cpu",
    "late_starts",
)  # checks that more processes may pass

BAD_SECONDS_LIMIT = 0.05  # share of seconds that may be bad

MEAN_LAG_LIMIT = 0.1  # of the median token gap

GAP_BOUND = 0.1  # of the median token gap: a token known less well than that counts as unknown

UNKNOWN_LIMIT = 0.05  # share of tokens that may be unknown

FIRST_TOKEN_LIMIT = 0.02  # of the mean time to the first token

CLOCK_ERROR_LIMIT = 0.02  # of each mean time, against what the simulator knows to be true; less than 5 ms is no error

GC_LIMIT = 0.01  # share of the time

LATE_LIMIT = 0.01  # share of the requests

Passes = Sequence[tuple[LevelRecords, Pass]]


def check_client(
    passes: Passes,
    anchor: float,
    gap_s: float | None,
    clock_error: ClockError | None = None,
    *,
    waits_count: bool = True,
) -> ClientHealth:
    """Did the load generator distort the figures?

    Arrivals stamped by the kernel do not depend on when this process ran: then the bounds on them are judged, not its lag
    and its CPU. Else the population is the seconds sampled while measured requests ran, over all passes and workers. Lags
    are wall seconds times the clock's speed, so that they compare with `gap_s`, the median token gap of the level. Fails
    without samples. `clock_error`: how far the times are off those of the simulator that answered, on whatever clock; it is
    then judged itself, in place of the lags that cause it. `waits_count`: is a request late that waited for a place, as many
    were in flight as may be? In a search for a rate it is outside the SLOs, and no fault of the load generator.
    """
    samples = [sample for level, columns in passes for sample in _during(level.health, columns, anchor)]
    if not samples:
        reason = "no sample of the load generator's own health: nothing shows that it kept up"
        return ClientHealth(status="fail", reasons=(reason,), checks=(), n_samples=0)
    records = [r for _, columns in passes for r, measured in zip(columns.records, columns.measured, strict=True) if measured]
    stamped_by = _stamped_by(records)
    if clock_error is not None:
        checks = [*_clock_checks(clock_error), *_cpu_checks(samples)]
    elif stamped_by == "kernel":
        checks = _bound_checks(records, gap_s)
    else:
        checks = [*_lag_checks(samples, gap_s), *_cpu_checks(samples)]
    full = 0 if waits_count else sum(_found_no_place(columns) for _, columns in passes)
    checks.append(_late_starts(samples, len(records), full))
    failed = [check for check in checks if check.status == "fail"]
    reasons = tuple(f"{check.reason}; {_remedy(check, samples)}" for check in failed)
    return ClientHealth(
        status="fail" if reasons else "pass",
        reasons=reasons,
        checks=tuple(checks),
        n_samples=len(samples),
        stamped_by=stamped_by,
        longest_unread_s=max((r.unread_s for r in records if r.unread_s is not None), default=None),
        priority=_priority(samples),
    )


def client_not_told() -> ClientHealth:
    """Of a run that another tool measured: nothing shows whether that tool kept up."""
    reason = "imported: nothing tells whether the load generator kept up"
    return ClientHealth(status="not_checked", reasons=(reason,), checks=(), n_samples=0)


_PRIORITIES: tuple[Priority, ...] = ("realtime", "nice", "normal")


def _priority(samples: Sequence[HealthSample]) -> Priority | None:
    """The lowest that any process had; None where none was said."""
    return max((s.priority for s in samples if s.priority), key=_PRIORITIES.index, default=None)


def _stamped_by(records: Sequence[RequestRecord]) -> StampSource | None:
    """Who timed the arrivals of all these requests: this process where it timed any, None where nothing came or was said."""
    said = {r.stamped_by for r in records if r.chunk_s}
    return None if not said or None in said else "process" if "process" in said else "kernel"


def _bound_checks(records: Sequence[RequestRecord], gap_s: float | None) -> list[HealthCheck]:
    """How well the kernel's stamps know the times to the first token, and the arrivals of tokens."""
    came = [r for r in records if r.chunk_s and r.sent_s is not None]
    if not came or not gap_s:
        return []
    ttft_s = float(np.mean([r.chunk_s[0] - (r.sent_s or 0.0) for r in came]))
    bound_s = float(np.mean([_first_token_bound_s(r) for r in came]))
    tokens = sum(len(r.chunk_s) for r in came)
    unknown = sum(late.chunks for r in came for late in r.late_chunks if span_s(r, late) > GAP_BOUND * gap_s) / tokens
    return [
        _check("first_token_bound", bound_s / ttft_s if ttft_s > 0 else 1.0, FIRST_TOKEN_LIMIT,
               f"times to the first token are known within {bound_s * 1e3:.2g} ms on average"),
        _check("gap_bound", unknown, UNKNOWN_LIMIT, f"{unknown:.1%} of the tokens came at a time that is known only within"
               f" {GAP_BOUND:.0%} of the median token gap or worse"),
    ]  # fmt: skip


def _first_token_bound_s(record: RequestRecord) -> float:
    """How far off its time to the first token can be: the request left, and the token came, within that time."""
    late = sum(span_s(record, late) for late in record.late_chunks[:1] if late.first_chunk == 0)
    return (record.write_s or 0.0) + late


def span_s(record: RequestRecord, late: LateChunks) -> float:
    """Time within which chunks came that one read found together."""
    return record.chunk_s[late.first_chunk + late.chunks - 1] - late.earliest_s


def no_client() -> ClientHealth:
    """`client_health` of a fast-forwarded study (`VIRTUAL_TIME`): there was no load generator, so none could fail."""
    reason = "fast-forwarded in virtual time: no load generator ran, so none could distort the figures"
    return ClientHealth(status="not_applicable", reasons=(reason,), checks=(), n_samples=0)


def _remedy(check: HealthCheck, samples: Sequence[HealthSample]) -> str:
    """What to do: as many processes as this load needs where those that there were had little of their cores left; a slower
    clock where it is fast; else a machine with less to do."""
    workers = len({sample.worker for sample in samples})
    share = float(np.quantile([sample.cpu_share for sample in samples], 0.9))
    if check.name in OF_LOAD and share > CPU_AIM:
        needed = max(workers + 1, ceil(workers * share / CPU_AIM))
        few = f"{workers} process{'es were' if workers > 1 else ' was'} not enough"
        return f"{few}: use --workers {needed} (Locust: --processes {needed})"
    speed = max(sample.clock_speed for sample in samples)
    slower = f"lower the simulator's clock speed from {speed:g}, or " if speed > 1 else ""
    alone = f"{slower}leave this machine to the load test alone"
    return f"{alone}, or let it take precedence (loadtest doctor says how)" if _priority(samples) == "normal" else alone


def _lag_checks(samples: Sequence[HealthSample], gap_s: float | None) -> list[HealthCheck]:
    mean_s = float(np.average([s.loop_lag_mean_s * s.clock_speed for s in samples], weights=_intervals_s(samples)))
    worst = np.array([s.loop_lag_max_s * s.clock_speed for s in samples])
    if gap_s is None or gap_s <= 0:
        return []
    late = float(np.average(worst > gap_s, weights=_intervals_s(samples)))
    return [
        _check("loop_lag_mean", mean_s / gap_s, MEAN_LAG_LIMIT,
               f"the event loop wakes {mean_s * 1e3:.2g} ms late on average, {mean_s / gap_s:.1%} of the median token gap"),
        _check("loop_lag_worst", late, BAD_SECONDS_LIMIT, f"in {late:.1%} of the seconds the loop woke later than one "
               f"median token gap (worst {np.max(worst) * 1e3:.3g} ms)"),
    ]  # fmt: skip


def _intervals_s(samples: Sequence[HealthSample]) -> list[float]:
    """Wall seconds that each sample speaks for: the last one of a level covers less than the others."""
    return [max(s.interval_s, 1e-3) for s in samples]


def _clock_checks(clock_error: ClockError) -> list[HealthCheck]:
    worst = clock_errors.worst(clock_error)
    return [
        HealthCheck(
            name="simulated_clock",
            status="fail" if worst is not None and abs(worst.share) > CLOCK_ERROR_LIMIT else "pass",
            value=0.0 if worst is None else abs(worst.share),
            limit=CLOCK_ERROR_LIMIT,
            reason=f"{worst or 'no time'} off the simulator's own; at most {CLOCK_ERROR_LIMIT:.0%}, or 5 ms",
        )
    ]


def _cpu_checks(samples: Sequence[HealthSample]) -> list[HealthCheck]:
    busy = float(np.average([s.cpu_share > CPU_LIMIT for s in samples], weights=_intervals_s(samples)))
    top = max(s.cpu_share for s in samples)
    pause = float(np.sum([s.gc_pause_s for s in samples]) / np.sum(_intervals_s(samples)))
    said = f"in {busy:.1%} of the seconds above {CPU_LIMIT:.0%} of a core (most {top:.0%})"
    return [
        _check("cpu", busy, BAD_SECONDS_LIMIT, said),
        _check("gc", pause, GC_LIMIT, f"{pause:.2%} of the time went to garbage collection"),
    ]


def _found_no_place(columns: Pass) -> int:
    """Measured requests that were due while as many were in flight as ever in their pass."""
    sent, ended = np.sort(columns.sent_s[np.isfinite(columns.sent_s)]), np.sort(columns.ended_s)
    due = columns.ended_s - np.array([r.ended_s - r.scheduled_s for r in columns.records])

    def in_flight(at_s: Floats) -> Ints:
        return np.searchsorted(sent, at_s, "right") - np.searchsorted(ended, at_s, "right")

    most = int(np.max(in_flight(sent), initial=0))
    return int(np.sum(columns.measured & (in_flight(due) >= most) & (columns.sent_s > due)))


def _late_starts(samples: Sequence[HealthSample], requests: int, full: int) -> HealthCheck:
    late = max(0, sum(s.late_starts for s in samples) - full) / max(requests, 1)
    said = f"{late:.1%} of the requests were sent more than 10 ms after their schedule"
    return _check("late_starts", late, LATE_LIMIT, said)


def _check(name: HealthCheckName, value: float, limit: float, said: str) -> HealthCheck:
    status: Literal["pass", "fail"] = "pass" if value <= limit else "fail"
    return HealthCheck(name=name, status=status, value=value, limit=limit, reason=f"{said}; at most {limit:.0%}")


def _during(samples: Sequence[HealthSample], columns: Pass, anchor: float) -> list[HealthSample]:
    use = columns.measured & np.isfinite(columns.sent_s)
    if not np.any(use):
        return []
    start, end = float(np.min(columns.sent_s[use])), float(np.max(columns.ended_s[use]))
    kept = [s for s in samples if start <= sample_time(s, anchor) <= end + s.clock_speed]
    return sorted(kept, key=lambda s: (sample_time(s, anchor), s.worker))


def sample_time(sample: HealthSample | ServerSample, anchor: float) -> float:
    return sample.t_s + offset(sample.clock_anchor_unix_s, sample.clock_speed, anchor)
