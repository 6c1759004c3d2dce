"""Real engines on the CPU against the performance model: calibrated on level 1, and on 1 and 4, it predicts the others.

A model of 36 million parameters with random weights, so that a step takes longer than the noise of reading streams. The
engine has one core and one thread. Short bursts of all levels take turns, and the least time of each level counts, as other
programs on the machine only ever add to it. `-s` prints what was measured and predicted; docs/performance-model.md says what
was seen. Of level 1 alone no model can tell what each further stream costs.
"""

import asyncio
import json
import math
import os
import shutil
import statistics
import time

import httpx
import pytest

from loadtest.perfmodel import gpus, machine_fit, models
from loadtest.perfmodel.machine_fit import RunLevel
from loadtest.perfmodel.memory import Deployment
from loadtest.servers.server import Server
from tests.engines.conftest import HERE, MODEL, VLLM_CORE, favour

LEVELS = (1, 2, 4, 8)
PASSES = 16
TOKENS = 32
SHAPE = {
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 2048,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny model's tokenizer, and a larger shape whose weights the engines draw."""
    directory = tmp_path_factory.mktemp("model") / "middle-qwq"
    shutil.copytree(MODEL, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((directory / "config.json").read_text()) | SHAPE
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module", params=["vllm", "sglang"])
def measured(request, spec, model, tmp_path_factory):
    """(deployment, times): times per token (s) of each level, one of each pass."""
    engine = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOADTEST_SGLANG", f"taskset --cpu-list {VLLM_CORE} {os.environ['LOADTEST_SGLANG']}")
        launch = spec(engine, "--load-format", "dummy", model=str(model), context_tokens=4096)
        with Server(launch, tmp_path_factory.mktemp(f"levels-{engine}") / "engine.log") as server:
            favour(server)
            server.wait_ready(900.0)
            favour(server)
            times = asyncio.run(passes(f"http://127.0.0.1:{launch.port}", launch.served_name))
    return Deployment(models.model(str(model)), gpus.gpu(str(HERE / "cpu.toml")), 1, engine), times


async def passes(base_url, served_name):
    """Bursts of all levels, every second pass in reverse order, after one that counts not."""
    times = {n: [] for n in LEVELS}
    async with httpx.AsyncClient(base_url=base_url, timeout=600) as client:
        await burst(client, served_name, max(LEVELS))
        for number in range(PASSES):
            for n in LEVELS[:: 1 if number % 2 == 0 else -1]:
                times[n].append(await burst(client, served_name, n))
    return times


async def burst(client, served_name, streams):
    """Mean seconds per token, after the first, of so many streams that begin together."""
    return statistics.fmean(await asyncio.gather(*(tpot_s(client, served_name, n) for n in range(streams))))


async def tpot_s(client, served_name, number):
    body = {
        "model": served_name, "messages": [{"role": "user", "content": f"{number} + {number}?"}], "stream": True,
        "max_tokens": TOKENS, "ignore_eos": True,
    }  # fmt: skip
    stamps = []
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and says_something(json.loads(line.removeprefix("data: "))):
                stamps.append(time.perf_counter())
    return (stamps[-1] - stamps[0]) / (TOKENS - 1)


def says_something(chunk):
    return any(
        choice["delta"].get(key) for choice in chunk["choices"] for key in ("content", "reasoning", "reasoning_content")
    )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("known", "worst"), [([1], 6.0), ([1, 4], 3.0)], ids=["level 1", "levels 1 and 4"])
def test_levels_that_were_not_fitted_are_predicted(known, worst, measured):
    """`worst` is a factor; what the two best bursts of a level differ by is allowed on top."""
    deployment, times = measured
    best = {n: sorted(times[n])[:2] for n in LEVELS}
    levels = {n: RunLevel(deployment, n, 1, TOKENS, best[n][0]) for n in LEVELS}  # prompts come together, and once
    machine = machine_fit.fit_machine([levels[n] for n in known], "measured")
    for n, level in levels.items():
        print(
            f"{deployment.engine}, fitted to {known}, {n} streams: measured {level.tpot_s * 1e3:.2f} ms"
            f" (median {statistics.median(times[n]) * 1e3:.2f}), {'fitted' if n in known else 'predicted'}"
            f" {machine_fit.tpot_s(level, machine) * 1e3:.2f} ms ({machine_fit.residual(level, machine):+.0%})"
        )
    noise = max(second / first for first, second in best.values())
    off = {n: math.exp(abs(math.log1p(machine_fit.residual(level, machine)))) for n, level in levels.items()}
    assert max(off.values()) < worst * noise**2
    assert max(off[n] for n in known) < 1.5 * noise
    predicted = [machine_fit.tpot_s(level, machine) for level in levels.values()]
    assert predicted == sorted(predicted)
