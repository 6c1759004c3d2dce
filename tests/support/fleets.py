"""Small fleets whose figures can be found by hand."""

from dataclasses import replace

from loadtest.analysis.fleet import peak
from loadtest.analysis.fleet.replica_model import ReplicaModel, request_mix
from loadtest.analysis.fleet.steady import SteadyReplica
from loadtest.metrics.slo import parse_slo
from loadtest.simulator.core.behaviour import behaviour
from loadtest.simulator.core.engine import EngineConfig
from loadtest.simulator.fleet import speed
from loadtest.simulator.fleet.speed import MeasuredLevel

MIX = request_mix([(100, 100)])  # 100 tokens each way
FINAL = parse_slo("time_to_final_answer_s:p90<200")


def shorten(monkeypatch):
    """Fewer requests: sizes in whole replicas of small fleets need no more."""
    monkeypatch.setattr(peak, "ENOUGH_REQUESTS", 400)
    monkeypatch.setattr(peak, "MOST_DAYS", 1)
    monkeypatch.setattr(peak, "SAMPLE", 8)


def model(known=4, token_s=0.5, careful=1.3):
    """Steps of 0.5 s and a little more with each of up to `known` streams, a prefill of 1 s: an answer takes 51 s alone."""
    levels = [MeasuredLevel(1, token_s), MeasuredLevel(known, token_s + (known - 1) * 0.01)]
    likely = speed.from_levels(levels, prefill_s=1.0, prompt_tokens=100, output_tokens=100, most_prompt_tokens=2048)
    config = EngineConfig(behaviour=behaviour("vllm-sim"), kv_tokens=100_000, max_running=known)
    one = SteadyReplica(likely, config, MIX)
    return ReplicaModel(one, None if careful is None else replace(one, speed=likely.times(careful)), known)
