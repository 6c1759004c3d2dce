"""`/metrics` of a simulated engine, under the engine's real names; times are simulated seconds.

Names and buckets as seen from vLLM 0.32.0 and SGLang 0.5.23; only those that a load test reads. A series that the real
engine leaves out before its first event is left out here too.
"""

from __future__ import annotations

from loadtest.simulator.core.counters import SGLANG_ITL, SGLANG_QUEUE, Observations
from loadtest.simulator.core.engine import Engine

SGLANG_ITL += (0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8)

SGLANG_QUEUE += (*range(200, 1001, 100), *range(1200, 2001, 200), 2500, 3000)


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
    lines += _vllm_drafts(engine, labels)
    blocks = cache.capacity_tokens // cache.page_tokens
    info = f'block_size="{cache.page_tokens}",engine="0",kv_cache_size_tokens="{cache.capacity_tokens}"'
    info += f',num_gpu_blocks="{blocks}"'
    return [*lines, f"vllm:cache_config_info{{{info}}} 1.0"]


def _vllm_drafts(engine: Engine, labels: str) -> list[str]:
    """Counters of drafts, which exist with speculation alone (its `v1/spec_decode/metrics.py`)."""
    speculation, drafts = engine.config.speculation, engine.drafts
    if speculation is None:
        return []
    counts = {
        f"num_drafts_total{{{labels}}}": drafts.rows,
        f"num_draft_tokens_total{{{labels}}}": drafts.rows * speculation.draft_tokens,
        f"num_accepted_tokens_total{{{labels}}}": drafts.accepted_tokens,
    } | {
        f'num_accepted_tokens_per_pos_total{{{labels},position="{n}"}}': drafts.accepted_beyond(n)
        for n in range(speculation.draft_tokens)
    }
    return [f"vllm:spec_decode_{name} {float(count)}" for name, count in counts.items()]


def _sglang_drafts(engine: Engine) -> dict[str, float]:
    """Gauges of drafts: means of the last steps, 0 without speculation (`scheduler_components/metrics_reporter.py`).

    Its number of draft tokens counts the token before them too, its rate does not.
    """
    speculation, drafts = engine.config.speculation, engine.drafts
    steps, tokens = (0, 0) if speculation is None else (speculation.draft_steps, speculation.draft_tokens)
    accepted = drafts.last_accepted / max(drafts.last_rows, 1)
    return {
        "spec_accept_length": accepted + 1 if drafts.last_rows else 0.0,
        "spec_accept_rate": accepted / max(tokens, 1),
        "spec_num_steps": float(steps),
        "spec_num_draft_tokens": float(tokens + 1 if tokens else 0),
    }


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
    } | _sglang_drafts(engine)
    lines = [f"sglang:{name}{{{labels}}} {value}" for name, value in gauges.items()]
    ended = sum(seen.finished.values())  # an aborted request counts as ended too, as in the engine
    events = {  # absent before the first event, as in the engine
        f"prompt_tokens_total{{{streaming}}}": seen.finished_prompt_tokens,
        f"generation_tokens_total{{{streaming}}}": seen.finished_tokens,
        f"spec_verify_calls_total{{{streaming}}}": seen.finished_verified_steps,
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
