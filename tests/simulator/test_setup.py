"""From a deployment to a simulated engine: context, prompts of a step, and what does not fit."""

import pytest

from loadtest.errors import FitError
from loadtest.perfmodel import gpus, models, step_time
from loadtest.perfmodel.memory import Deployment
from loadtest.perfmodel.prediction import predict
from loadtest.perfmodel.step_time import StepWork
from loadtest.simulator.core.engine import Engine
from loadtest.simulator.core.sequence import Request
from loadtest.simulator.setup import default_context_tokens, simulate


def on(model, gpu, tp=1, engine="vllm-sim", **options):
    return Deployment(models.model(model), gpus.gpu(gpu), tp, engine, **options)


@pytest.mark.parametrize(
    ("model", "context"),
    [
        ("qwq-32b", 40_960),
        ("qwen3-0.6b", 40_960),
        ("qwen2.5-7b-instruct", 32_768),
        ("deepseek-r1", 163_840),
        ("gpt-oss-20b", 131_072),
        ("magistral-small-2506", 40_960),
    ],
)
def test_a_reasoning_model_has_room_for_a_prompt_within_what_it_serves(model, context):
    assert default_context_tokens(models.model(model)) == context


@pytest.mark.parametrize(
    ("engine", "gpu", "tokens"),
    [("vllm-sim", "l20", 2048), ("sglang-sim", "l20", 4096), ("vllm-sim", "h100", 8192), ("sglang-sim", "rtx-4090", 2048)],
)
def test_prompts_are_cut_as_the_engine_cuts_them_on_that_gpu(engine, gpu, tokens):
    one = on("qwen2.5-7b-instruct", gpu, 1, engine)
    assert simulate(one).config.prefill_budget_tokens == tokens
    assert simulate(one, prefill_budget_tokens=512).config.prefill_budget_tokens == 512


@pytest.mark.parametrize(
    ("engine", "gpu", "streams"),
    [("vllm-sim", "l20", 256), ("vllm-sim", "a100-80gb", 256), ("vllm-sim", "h100", 1024), ("sglang-sim", "l20", 4096)],
)
def test_as_many_streams_run_as_the_engine_lets_on_that_gpu(engine, gpu, streams):
    one = on("qwen2.5-7b-instruct", gpu, 1, engine)
    assert simulate(one).config.max_running == streams
    assert simulate(one, max_running=7).config.max_running == 7


def test_a_step_takes_what_the_performance_model_says():
    one = on("qwq-32b", "l20", 2, interconnect="pcie-host")
    work = StepWork(decode_streams=4, kv_read_tokens=4000)
    assert simulate(one).step_time_s(work) == step_time.step_time_s(one, work)


def test_a_mixture_of_experts_is_simulated_where_it_fits():
    assert simulate(on("gpt-oss-20b", "l20")).config.kv_tokens > 100_000
    with pytest.raises(FitError, match="CUDA out of memory"):
        simulate(on("deepseek-r1", "h100", 8))


def loop_tpot_s(deployment, prompt, output, streams):
    """Mean time per token of equal requests in a closed loop of the simulated engine, once its streams are out of step."""
    made = simulate(deployment, prefix_cache=False)
    engine, sent, found = Engine(made.config, made.step_time_s), {}, []

    def send(number, tokens):
        engine.submit(Request(id=str(number), prompt=f"{number:<4}" * prompt, output_tokens=tokens), engine.now_s)
        sent[str(number)] = engine.sequences[str(number)]

    for number in range(1, streams + 1):
        send(number, output * number // streams)
    while len(found) < 3 * streams:
        for event in engine.step():
            if event.kind == "finished":
                one = sent[event.request_id]
                if int(event.request_id) > 2 * streams:
                    found.append((one.last_token_s - one.first_token_s) / (output - 1))
                send(len(sent) + 1, output)
    return sum(found) / len(found)


@pytest.mark.parametrize("engine", ["vllm-sim", "sglang-sim"])
@pytest.mark.parametrize(("prompt", "output", "streams"), [(200, 400, 8), (4000, 400, 8), (1000, 300, 32)])
def test_prompts_delay_the_streams_beside_them_as_predicted(engine, prompt, output, streams):
    one = on("qwq-32b-awq", "l20", 2, engine)
    told = predict(one, prompt_tokens=prompt, output_tokens=output, concurrency=streams)
    assert loop_tpot_s(one, prompt, output, streams) == pytest.approx(told.tpot_s.value, rel=0.01)
