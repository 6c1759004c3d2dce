"""`/metrics` of a simulated runtime, under the runtime's real names; times are simulated seconds.

Names and buckets as seen from vLLM 0.32.0 and SGLang 0.5.23; only those that a load test reads. A series that the real
runtime leaves out before its first event is left out here too.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

from loadtest.simulator.engine import Engine
from loadtest.simulator.sequence import Sequence

_VLLM_TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
_VLLM_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_VLLM_E2E = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_SGLANG_TTFT = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400)
_SGLANG_ITL: tuple[float, ...] = (0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1)
_SGLANG_ITL += (0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8)
_SGLANG_E2E = (*_SGLANG_TTFT, 600, 1200, 1800, 2400)
_SGLANG_QUEUE: tuple[float, ...] = (0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, *range(1, 6), 10, 15, *range(20, 101, 10))
_SGLANG_QUEUE += (*range(200, 1001, 100), *range(1200, 2001, 200), 2500, 3000)
_LATE = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)


class Histogram:
    """Counts under fixed upper bounds (s), with sum and count."""

    __slots__ = ("bounds", "buckets", "count", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.count = 0
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self.buckets[bisect_left(self.bounds, value)] += times
        self.count += times
        self.sum += value * times

    def lines(self, name: str, labels: str) -> list[str]:
        """The series of this histogram, cumulative as Prometheus wants them."""
        rows = [*self.cumulative(), ("+Inf", float(self.count))]
        out = [f'{name}_bucket{{{labels},le="{bound}"}} {total}' for bound, total in rows]
        return [*out, f"{name}_sum{{{labels}}} {self.sum}", f"{name}_count{{{labels}}} {float(self.count)}"]

    def cumulative(self) -> tuple[tuple[float, float], ...]:
        """(upper bound in s, values up to it) of each finite bound."""
        return tuple(zip(map(float, self.bounds), map(float, accumulate(self.buckets)), strict=False))


@dataclass(slots=True)
class Observations:
    """What the server saw its engine do: latencies in simulated seconds, ends by reason; its own lateness (wall s)."""

    vllm: bool
    ttft: Histogram = field(init=False)
    itl: Histogram = field(init=False)
    e2e: Histogram = field(init=False)
    queue: Histogram = field(init=False)
    finished: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("stop", "length", "abort", "error", "repetition"), 0)
    )
    finished_prompt_tokens: int = 0  # of requests that ended by themselves, as the SGLang-like counts them
    finished_tokens: int = 0
    rejected: int = 0
    late: Histogram = field(default_factory=lambda: Histogram(_LATE))
    late_max_s: float = 0.0
    overruns: int = 0
    sent_tokens: int = 0

    def __post_init__(self) -> None:
        self.ttft = Histogram(_VLLM_TTFT if self.vllm else _SGLANG_TTFT)
        self.itl = Histogram(_VLLM_ITL if self.vllm else _SGLANG_ITL)
        self.e2e = Histogram(_VLLM_E2E if self.vllm else _SGLANG_E2E)
        self.queue = Histogram(_VLLM_E2E if self.vllm else _SGLANG_QUEUE)

    def first_token(self, sequence: Sequence) -> None:
        """A request got its first token."""
        assert sequence.first_token_s is not None
        self.ttft.observe(sequence.first_token_s - sequence.arrival_s)
        self.queue.observe((sequence.scheduled_s or sequence.arrival_s) - sequence.arrival_s)

    def end(self, sequence: Sequence, reason: str) -> None:
        """A request ended, by itself or not."""
        self.finished[reason] += 1
        if reason != "abort":
            self.e2e.observe(sequence.last_token_s - sequence.arrival_s)
            self.finished_prompt_tokens += sequence.prompt_tokens
            self.finished_tokens += sequence.generated


def render(engine: Engine, seen: Observations, model: str) -> str:
    """The whole page."""
    lines = _vllm(engine, seen, model) if seen.vllm else _sglang(engine, seen, model)
    lines += seen.late.lines("loadtest_sim:late_seconds", f'model_name="{model}"')
    lines += [
        f"loadtest_sim:late_seconds_max {seen.late_max_s}",
        f"loadtest_sim:overrun_steps_total {float(seen.overruns)}",
        f"loadtest_sim:sent_tokens_total {float(seen.sent_tokens)}",
    ]
    return "\n".join(_with_types(lines)) + "\n"


def _with_types(lines: list[str]) -> list[str]:
    """A TYPE comment before the first series of every family."""
    out, seen = [], set()
    histograms = {line.split("_bucket{")[0] for line in lines if "_bucket{" in line}
    for line in lines:
        name = line.split("{")[0].split(" ")[0]
        family = next((n for n in (name.removesuffix(s) for s in ("_bucket", "_sum", "_count")) if n in histograms), name)
        if family not in seen:
            seen.add(family)
            counts = "histogram" if family in histograms else "counter" if name.endswith("_total") else "gauge"
            out.append(f"# TYPE {family} {counts}")
        out.append(line)
    return out


def _vllm(engine: Engine, seen: Observations, model: str) -> list[str]:
    labels, totals, cache = f'engine="0",model_name="{model}"', engine.totals, engine.cache
    waiting = float(len(engine.waiting))
    single = {
        "num_requests_running": float(len(engine.running)),
        "num_requests_waiting": waiting,
        "kv_cache_usage_perc": cache.used_tokens() / cache.capacity_tokens,
        "prefix_cache_queries_total": float(totals.prefix_query_tokens),
        "prefix_cache_hits_total": float(totals.prefix_hit_tokens),
        "num_preemptions_total": float(totals.preemptions),
        "prompt_tokens_total": float(totals.prompt_tokens),
        "generation_tokens_total": float(totals.generation_tokens),
    }
    lines = [f"vllm:{name}{{{labels}}} {value}" for name, value in single.items()]
    for reason, value in (("capacity", waiting), ("deferred", 0.0)):
        lines.append(f'vllm:num_requests_waiting_by_reason{{{labels},reason="{reason}"}} {value}')
    for reason, count in seen.finished.items():
        lines.append(
            f'vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="{model}"}} {float(count)}'
        )
    lines.append(
        f'vllm:admission_rejections_total{{model_name="{model}",reason="max_num_queued_reqs"}} {float(seen.rejected)}'
    )
    lines += seen.ttft.lines("vllm:time_to_first_token_seconds", labels)
    lines += seen.itl.lines("vllm:inter_token_latency_seconds", labels)
    lines += seen.e2e.lines("vllm:e2e_request_latency_seconds", labels)
    lines += seen.queue.lines("vllm:request_queue_time_seconds", labels)
    blocks = cache.capacity_tokens // cache.page_tokens
    info = f'block_size="{cache.page_tokens}",engine="0",kv_cache_size_tokens="{cache.capacity_tokens}"'
    info += f',num_gpu_blocks="{blocks}"'
    return [*lines, f"vllm:cache_config_info{{{info}}} 1.0"]


def _sglang(engine: Engine, seen: Observations, model: str) -> list[str]:
    totals, cache = engine.totals, engine.cache
    plain = f'engine_type="unified",model_name="{model}"'
    labels = plain + ',moe_ep_rank="0",pp_rank="0",tp_rank="0"'
    streaming = f'engine_type="unified",is_streaming="true",model_name="{model}"'
    gauges = {
        "num_running_reqs": float(len(engine.running)),
        "num_queue_reqs": float(len(engine.waiting)),
        "token_usage": cache.used_tokens() / cache.capacity_tokens,
        "num_used_tokens": float(cache.used_tokens()),
        "max_total_num_tokens": float(cache.capacity_tokens),
        "num_retracted_reqs": float(sum(1 for s in engine.waiting if s.preemptions)),
        "gen_throughput": engine.gen_tokens_per_s,
        "cache_hit_rate": totals.prefix_hit_tokens / max(totals.prefix_query_tokens, 1),
    }
    lines = [f"sglang:{name}{{{labels}}} {value}" for name, value in gauges.items()]
    ended = sum(seen.finished.values())  # an aborted request counts as ended too, as in the runtime
    events = {  # absent before the first event, as in the runtime
        f"prompt_tokens_total{{{streaming}}}": seen.finished_prompt_tokens,
        f"generation_tokens_total{{{streaming}}}": seen.finished_tokens,
        f"num_requests_total{{{streaming}}}": ended,
        f'cached_tokens_total{{cache_source="device",{plain}}}': totals.prefix_hit_tokens,
        f"num_aborted_requests_total{{{plain}}}": seen.finished["abort"],
        f"num_retracted_requests_total{{{labels}}}": totals.preemptions,
    }
    lines += [f"sglang:{name} {float(count)}" for name, count in events.items() if count]
    lines += seen.ttft.lines("sglang:time_to_first_token_seconds", streaming) if seen.ttft.count else []
    lines += seen.itl.lines("sglang:inter_token_latency_seconds", plain) if seen.itl.count else []
    lines += seen.e2e.lines("sglang:e2e_request_latency_seconds", streaming) if seen.e2e.count else []
    lines += seen.queue.lines("sglang:queue_time_seconds", labels) if seen.queue.count else []
    return lines
