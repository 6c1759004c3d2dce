"""Can the figures be believed: the load generator's own health, client against server totals, troubles of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np

from loadtest import acceleration, answers
from loadtest.columns import FINISHED, Pass, offset
from loadtest.records import HealthSample, LevelRecords, RequestRecord, ServerSample

CPU_LIMIT = 0.9  # of one core, by one process
CPU_AIM = 0.6  # of one core, by one process: leaves room for bursts
OF_LOAD = ("loop_lag_mean", "loop_lag_worst", "cpu", "late_starts")  # checks that more processes may pass
BAD_SECONDS_LIMIT = 0.05  # share of seconds that may be bad
MEAN_LAG_LIMIT = 0.1  # of the median token gap
CLOCK_ERROR_LIMIT = 0.02  # of each mean time, against what the simulator knows to be true
GC_LIMIT = 0.01  # share of the time
LATE_LIMIT = 0.01  # share of the requests
TOKENS_TOLERANCE = 0.001  # of the total, and at least one token a request
VIRTUAL_TIME = "virtual time"  # `driven` in the manifest of a fast-forwarded study: there was no load generator
TTFT_SLACK_S = 0.1  # wall: network, HTTP and the loop's lateness on both sides of a mean TTFT
TTFT_TOLERANCE = 0.05  # of the server's mean
ABORT_SLACK_S = 2.0  # a server may decode for so long after its client has left (engines' notes)

Passes = Sequence[tuple[LevelRecords, Pass]]


def client(
    passes: Passes, anchor: float, gap_s: float | None, clock_error: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Did the load generator distort the figures? `{status: pass|fail, reasons, checks, n_samples}`.

    Population: the seconds sampled while measured requests ran, over all passes and workers. Lags are wall seconds times
    the clock's speed, so that they compare with `gap_s`, the median token gap of the level. Fails without samples.
    `clock_error` (`acceleration.clock_error`) is what a fast simulated clock was measured to cost; it is then judged
    itself, in place of the lags that cause it.
    """
    samples = [sample for level, columns in passes for sample in _during(level.health, columns, anchor)]
    if not samples:
        reason = "no sample of the load generator's own health: nothing shows that it kept up"
        return {"status": "fail", "reasons": [reason], "checks": [], "n_samples": 0}
    requests = sum(int(np.sum(columns.measured)) for _, columns in passes)
    timing = _lag_checks(samples, gap_s) if clock_error is None else _clock_checks(clock_error)
    checks = [_check(*one) for one in (*timing, *_other_checks(samples, requests))]
    remedy = _remedy(samples)
    reasons = [
        str(check["reason"]) + (remedy if check["name"] in OF_LOAD else "") for check in checks if check["status"] == "fail"
    ]
    return {"status": "fail" if reasons else "pass", "reasons": reasons, "checks": checks, "n_samples": len(samples)}


def no_client() -> dict[str, Any]:
    """`client_health` of a fast-forwarded study (`VIRTUAL_TIME`): there was no load generator, so none could fail."""
    reason = "fast-forwarded in virtual time: no load generator ran, so none could distort the figures"
    return {"status": "not_applicable", "reasons": [reason], "checks": [], "n_samples": 0}


def _remedy(samples: Sequence[HealthSample]) -> str:
    """How many processes this load needs, where those that there were had little of their cores left; else nothing."""
    workers = len({sample.worker for sample in samples})
    share = float(np.quantile([sample.cpu_share for sample in samples], 0.9))
    if share <= CPU_AIM:
        return ""
    needed = max(workers + 1, ceil(workers * share / CPU_AIM))
    return f"; {workers} process{'es were' if workers > 1 else ' was'} not enough: use --processes {needed}"


def _lag_checks(samples: Sequence[HealthSample], gap_s: float | None) -> list[tuple[str, float, float, str]]:
    mean_s = float(np.average([s.loop_lag_mean_s * s.clock_speed for s in samples], weights=_intervals_s(samples)))
    worst = np.array([s.loop_lag_max_s * s.clock_speed for s in samples])
    if gap_s is None or gap_s <= 0:
        return []
    late = float(np.average(worst > gap_s, weights=_intervals_s(samples)))
    return [
        ("loop_lag_mean", mean_s / gap_s, MEAN_LAG_LIMIT,
         f"the event loop wakes {mean_s * 1e3:.2g} ms late on average, {mean_s / gap_s:.1%} of the median token gap"),
        ("loop_lag_worst", late, BAD_SECONDS_LIMIT,
         f"in {late:.1%} of the seconds the loop woke later than one median token gap (worst {np.max(worst) * 1e3:.3g} ms)"),
    ]  # fmt: skip


def _intervals_s(samples: Sequence[HealthSample]) -> list[float]:
    """Wall seconds that each sample speaks for: the last one of a level covers less than the others."""
    return [s.interval_s for s in samples]


def _clock_checks(clock_error: Mapping[str, Any]) -> list[tuple[str, float, float, str]]:
    worst = acceleration.worst([clock_error])
    if worst is None:
        return []
    return [("simulated_clock", worst, CLOCK_ERROR_LIMIT, f"the fast clock put the times off by up to {worst:.1%}")]


def _other_checks(samples: Sequence[HealthSample], requests: int) -> list[tuple[str, float, float, str]]:
    busy = float(np.average([s.cpu_share > CPU_LIMIT for s in samples], weights=_intervals_s(samples)))
    top = max(s.cpu_share for s in samples)
    pause = float(np.sum([s.gc_pause_s for s in samples]) / np.sum(_intervals_s(samples)))
    late = sum(s.late_starts for s in samples) / max(requests, 1)
    return [
        ("cpu", busy, BAD_SECONDS_LIMIT, f"in {busy:.1%} of the seconds above {CPU_LIMIT:.0%} of a core (most {top:.0%})"),
        ("gc", pause, GC_LIMIT, f"{pause:.2%} of the time went to garbage collection"),
        ("late_starts", late, LATE_LIMIT, f"{late:.1%} of the requests were sent more than 10 ms after their schedule"),
    ]


def _check(name: str, value: float, limit: float, said: str) -> dict[str, Any]:
    good = value <= limit
    reason = f"{said}; at most {limit:.0%}"
    return {"name": name, "status": "pass" if good else "fail", "value": value, "limit": limit, "reason": reason}


def _during(samples: Sequence[HealthSample], columns: Pass, anchor: float) -> list[HealthSample]:
    use = columns.measured & np.isfinite(columns.sent_s)
    if not np.any(use):
        return []
    start, end = float(np.min(columns.sent_s[use])), float(np.max(columns.ended_s[use]))
    kept = [s for s in samples if start <= _time(s, anchor) <= end + s.clock_speed]
    return sorted(kept, key=lambda s: (_time(s, anchor), s.worker))


def _time(sample: HealthSample | ServerSample, anchor: float) -> float:
    return sample.t_s + offset(sample.clock_anchor_unix_s, sample.clock_speed, anchor)


def reconciliation(passes: Passes, anchor: float, tpot_s: float | None) -> dict[str, Any]:
    """Client against server: tokens and requests of whole passes, warm-up included, first to last reading of `/metrics`.

    `{status: pass|fail|not_checked, reasons, passes: [{client.., server.., ttft}]}`. Exact up to one token a request or
    0.1 %; `ttft` holds the times to the first token, as both saw them (`_ttft`). A request that was cut off or broke
    makes a range: a server may not have counted it yet, or decode on for 2 s after its client has left. Not checked
    where the readings do not bracket every request. What a server generated before the first reading, its own warm-up,
    is outside.
    """
    found = [_reconcile(level, columns, anchor, tpot_s or 0.02) for level, columns in passes]
    states = {one["status"] for one in found}
    status = "fail" if "fail" in states else "not_checked" if "not_checked" in states or not found else "pass"
    reasons = [f"pass {one['repeat']}: {one['reason']}" for one in found if one["reason"]]
    totals = {key: _sum(one[key] for one in found) for key in ("client_output_tokens", "server_output_tokens")}
    return {"status": status, "reasons": reasons, **totals, "passes": found}


def _sum(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if not known or None in known else float(sum(v for v in known if v is not None))


def server(passes: Passes, anchor: float) -> dict[str, float | None]:
    """What the server's own counters say of whole passes, warm-up included; null where it does not tell.

    `n_preemptions` (vLLM; retractions of SGLang): requests put back for want of KV cache, their work done anew.
    `prefix_cache_hit_share`: prompt tokens found in the prefix cache / prompt tokens. Both from the first reading of
    `/metrics` to the last, over all passes. `peak_kv_usage_share` (of the KV cache), `peak_waiting_at_once`: in any of them.
    """
    readings = [_readings(level, anchor) for level, _ in passes]
    ends = [(one[0], one[-1]) for one in readings if len(one) > 1]

    def growth(field: str) -> float | None:
        return _sum(_difference(first, last, field) for first, last in ends) if ends else None

    def highest(field: str) -> float | None:
        return max((v for one in readings for s in one if (v := getattr(s, field)) is not None), default=None)

    hits, prompts = growth("prefix_cache_hit_tokens_total"), growth("prefix_cache_query_tokens_total")
    return {
        "n_preemptions": growth("preemptions_total"),
        "prefix_cache_hit_share": hits / prompts if hits is not None and prompts else None,
        "peak_kv_usage_share": highest("kv_usage"),
        "peak_waiting_at_once": highest("waiting"),
    }


def _readings(level: LevelRecords, anchor: float) -> list[ServerSample]:
    """Those of a pass that succeeded, ascending in time."""
    return [s for s in sorted(level.server, key=lambda s: _time(s, anchor)) if s.error is None]


def _reconcile(level: LevelRecords, columns: Pass, anchor: float, tpot_s: float) -> dict[str, Any]:
    readings = _readings(level, anchor)
    ranges = _client_ranges(columns, tpot_s)
    first, last = (readings[0], readings[-1]) if len(readings) > 1 else (None, None)
    server = {name: _difference(first, last, field) for name, field in _TOTALS.items()}
    answer: dict[str, Any] = {
        "repeat": level.repeat,
        "status": "not_checked",
        "reason": _unbracketed(first, last, columns, anchor),
        "ttft": None,
    }
    for name, (low, _) in ranges.items():
        answer |= {f"client_{name}": low, f"server_{name}": server[name]}
    if answer["reason"]:
        return answer
    wrong = [_disagreement(name, ranges[name], server[name], len(columns.records)) for name in ranges]
    answer["ttft"] = _ttft(first, last, columns, tpot_s)
    wrong.append(answer["ttft"]["reason"] if answer["ttft"]["status"] == "fail" else None)
    checked = any(value is not None for value in server.values())
    reason = "; ".join(text for text in wrong if text) or (None if checked else "the server tells no totals")
    status = "not_checked" if not checked else "fail" if any(wrong) else "pass"
    return answer | {"status": status, "reason": reason}


_TOTALS = {
    "prompt_tokens": "prompt_tokens_total",
    "output_tokens": "generation_tokens_total",
    "requests": "requests_finished_total",
}


def _client_ranges(columns: Pass, tpot_s: float) -> dict[str, tuple[float, float]]:
    """Least and most that the server may have counted: finished requests alone; all, with what an abort may add."""
    ranges: dict[str, tuple[float, float]] = {"requests": (0, 0), "prompt_tokens": (0, 0), "output_tokens": (0, 0)}
    slack = ABORT_SLACK_S / max(tpot_s, 1e-6)
    for record, arrived in zip(columns.records, columns.tokens, strict=True):
        output = float(record.completion_tokens or arrived)
        prompt = record.prompt_tokens
        done = record.outcome in FINISHED
        started = record.sent_s is not None and record.outcome not in ("http_error", "connection_error")
        least = {"requests": 1.0, "prompt_tokens": float(prompt or 0), "output_tokens": output} if done else {}
        unknown = float("inf") if prompt is None else float(prompt)
        most = {"requests": 1.0, "prompt_tokens": unknown, "output_tokens": output + slack} if started else {}
        most = least or most
        for name, (low, high) in ranges.items():
            ranges[name] = (low + least.get(name, 0.0), high + most.get(name, 0.0))
    return ranges


def _difference(first: ServerSample | None, last: ServerSample | None, field: str) -> float | None:
    """Growth of a counter. One that is absent at first and there later began at 0 (SGLang's, before the first event)."""
    start, end = getattr(first, field, None), getattr(last, field, None)
    return None if end is None else float(end - (start or 0))


def _ttft(first: ServerSample | None, last: ServerSample | None, columns: Pass, tpot_s: float) -> dict[str, Any]:
    """Times to the first token (s): the client's mean and median against the server's own histogram.

    `{status, reason, n_client, n_server, client_mean_s, server_mean_s, difference_s, tolerance_s, client_p50_s,
    server_p50_s: [low, high]}`. Both count the server's queue. The client's begins with the send and ends with text on its
    side, so it is larger, by the network, HTTP, and a token or two that carry no text: up to 0.1 s of wall time, two token
    gaps and 5 % pass, and 5 % the other way. The median must lie in the server's bucket, as much wider. Not checked where
    both did not see the same number of first tokens.
    """
    waits = np.sort((columns.first_s - columns.sent_s)[np.isfinite(columns.first_s) & np.isfinite(columns.sent_s)])
    count, total_s = _difference(first, last, "ttft_count"), _difference(first, last, "ttft_sum_s")
    n = len(waits)
    found: dict[str, Any] = {"status": "not_checked", "reason": None, "n_client": n, "n_server": count}
    if count is None or total_s is None or count != n or not n:
        seen = "none" if count is None else f"{count:.0f}"
        return found | {"reason": f"first tokens: client {n}, server {seen}: not the same requests"}
    server_s, client_s = total_s / n, float(np.mean(waits))
    speed = columns.records[0].clock_speed
    low_s, high_s = TTFT_TOLERANCE * server_s, TTFT_TOLERANCE * server_s + TTFT_SLACK_S * speed + 2 * tpot_s
    middle, bucket = float(waits[(n - 1) // 2]), _median_bucket(first, last, n)
    found |= {
        "client_mean_s": client_s, "server_mean_s": server_s, "difference_s": client_s - server_s, "tolerance_s": high_s,
        "client_p50_s": middle, "server_p50_s": bucket,
    }  # fmt: skip
    if not -low_s <= client_s - server_s <= high_s:
        more = client_s > server_s
        cause = "the network, a proxy or a queue before the server" if more else "the server measures something else"
        said = f"mean TTFT: client {client_s:.4g} s, server {server_s:.4g} s, beyond the tolerance of"
        return found | {"status": "fail", "reason": f"{said} {high_s if more else low_s:.3g} s: {cause}"}
    if bucket is not None and not bucket[0] - low_s <= middle <= (bucket[1] or np.inf) + high_s:
        ends = f"{bucket[0]:g} to {'more' if bucket[1] is None else f'{bucket[1]:g}'} s"
        return found | {"status": "fail", "reason": f"median TTFT: client {middle:.4g} s, server {ends}"}
    return found | {"status": "pass"}


def _median_bucket(first: ServerSample | None, last: ServerSample | None, n: int) -> tuple[float, float | None] | None:
    """The bucket of the server's histogram that holds the lower median of `n` new values; its end is null for the last."""
    ends = getattr(last, "ttft_buckets", None)
    if not ends:
        return None
    before = dict(getattr(first, "ttft_buckets", None) or ())
    low_s = 0.0
    for bound_s, value in ends:
        if value - before.get(bound_s, 0.0) >= (n + 1) // 2:
            return low_s, bound_s
        low_s = bound_s
    return low_s, None


def _unbracketed(first: ServerSample | None, last: ServerSample | None, columns: Pass, anchor: float) -> str | None:
    if first is None or last is None:
        return "fewer than two readings of the server's /metrics"
    sent = columns.sent_s[np.isfinite(columns.sent_s)]
    if not len(sent):
        return "no request was sent"
    if _time(first, anchor) > float(np.min(sent)):
        return "the first reading of /metrics came after the first request"
    if _time(last, anchor) < float(np.max(columns.ended_s)):
        return "the last reading of /metrics came before the last request ended"
    return None


def _disagreement(name: str, span: tuple[float, float], server: float | None, requests: int) -> str | None:
    if server is None:
        return None
    tolerance = 0.0 if name == "requests" else max(float(requests), TOKENS_TOLERANCE * server)
    if span[0] - tolerance <= server <= span[1] + tolerance:
        return None
    expected = f"{span[0]:.0f}" if span[0] == span[1] else f"{span[0]:.0f} to {span[1]:.0f}"
    cause = "records are missing, or others used the server" if server > span[1] else "the server counted less than arrived"
    return f"{name.replace('_', ' ')}: client {expected}, server {server:.0f}: {cause}"


def equal_work(records: Iterable[RequestRecord]) -> dict[str, Any]:
    """Did every forced output come out as long as it was forced? `{status: pass|fail|not_applicable, reasons, n_forced}`.

    Population: measured requests with a forced length that the server ended by itself and counted. The plan holds for one
    that broke or was cut off too, but its length says nothing of whether the runtime keeps to it.
    """
    forced = [r for r in records if r.forced_tokens is not None and r.outcome in FINISHED]
    counted = [r for r in forced if r.token_count_source == "server"]
    wrong = [r for r in counted if r.completion_tokens != r.forced_tokens]
    first = min(wrong, key=lambda r: r.seq, default=None)
    reasons = []
    if first is not None:
        reasons.append(
            f"{len(wrong)} of {len(counted)} outputs have not the length that was forced (first: {first.prompt_id},"
            f" {first.completion_tokens} tokens in place of {first.forced_tokens}): not equal work"
        )
    status = "fail" if wrong else "pass" if counted else "not_applicable"
    return {"status": status, "reasons": reasons, "n_forced": len(counted)}


def troubles(records: Iterable[RequestRecord], *, simulated: bool) -> dict[str, int]:
    """How many measured requests show each known trouble of a reasoning model.

    `no_closing_think`: the output ended inside the thinking; where the server splits, only the limit shows that. Not counted
    where a length was forced. `empty_answer`: it stopped by itself after the thinking (as far as one can tell) without an
    answer. `repetition` and `wrong_language` are read from the answer, `repetition` also from the end of an output that has
    none; not in simulated text, which is filler.
    """
    names = ("no_closing_think", "truncated", "no_answer", *answers.TROUBLES)
    counts = dict.fromkeys(names, 0)
    for record in records:
        counts["no_closing_think"] += _is_unclosed(record)
        counts["truncated"] += record.outcome == "truncated"
        counts["no_answer"] += record.outcome == "no_answer"
        for name in _seen(record, simulated=simulated):
            counts[name] += 1
    return counts


def _is_unclosed(record: RequestRecord) -> bool:
    if record.outcome not in FINISHED or record.forced_tokens is not None:
        return False
    cut = record.outcome == "truncated" and record.thinking_field is not None and record.first_answer_chunk is None
    return record.think_closed is False or (cut and record.think_closed is None)


def _seen(record: RequestRecord, *, simulated: bool) -> tuple[str, ...]:
    """Troubles in the text that is kept; an empty answer counts where the model stopped and no length was forced."""
    text = (record.answer or "").strip()
    if (
        not text
        and record.outcome in ("ok", "no_answer")
        and record.forced_tokens is None
        and record.think_closed is not False
    ):
        found = answers.troubles(text)
    else:
        found = answers.troubles(text) if text and not simulated else ()
    looped = not simulated and "repetition" not in found and answers.repeats(record.output_end or "")
    return (*found, "repetition") if looped else found


def summary(cells: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The run's gates in one place: `{client, reconciliation, complete, counted_by, reasons}`. A request whose record was
    torn, as its writer was killed in mid-line, is missing: such a run is not complete. `counted_by`: who counted the tokens
    of finished requests, the least trustworthy of `server`, `tokenizer`, `chunks`; null where none finished."""  # fmt: skip
    reasons = []
    torn = 0
    counters: set[str] = set()
    states: dict[str, set[str]] = {"client_health": set(), "reconciliation": set()}
    for cell in cells:
        for level in cell["levels"]:
            if level["torn_lines"]:
                torn += level["torn_lines"]
                reasons.append(f"{cell['id']} at {level['concurrency']}: {level['torn_lines']} torn line(s) left out")
            if (forced := level.get("equal_work")) is not None:
                reasons += [f"{cell['id']} at {level['concurrency']}: {reason}" for reason in forced["reasons"]]
            counters.update(level["token_count_sources"])
            for gate, seen in states.items():
                seen.add(level[gate]["status"])
                if level[gate]["status"] in ("fail", "not_checked"):
                    reasons += [f"{cell['id']} at {level['concurrency']}: {reason}" for reason in level[gate]["reasons"]]
    if not manifest.get("complete"):
        reasons.append(str(manifest.get("incomplete_reason") or "the run did not come to its end"))
    return {
        "client": _worst(states["client_health"]),
        "reconciliation": _worst(states["reconciliation"]),
        "complete": bool(manifest.get("complete")) and not torn,
        "counted_by": next((one for one in ("chunks", "tokenizer", "server") if one in counters), None),
        "reasons": reasons,
    }


def _worst(states: set[str]) -> str:
    return next((state for state in ("fail", "not_checked", "pass") if state in states), min(states, default="not_checked"))
