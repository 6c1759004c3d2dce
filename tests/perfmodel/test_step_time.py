"""The time of one engine step: hand-computed goldens and properties."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.perfmodel import gpus, models, step_time
from loadtest.perfmodel.constants import Constants, EngineConstants, GpuConstants, KernelConstants, Machine
from loadtest.perfmodel.interconnect import all_reduce_s
from loadtest.perfmodel.memory import Deployment, Speculation
from loadtest.perfmodel.step_time import StepWork, step_time_s


def on(model, gpu, tp=1, engine="other", **options):
    return Deployment(models.model(model), gpus.gpu(gpu), tp, engine, **options)


# Made up, so that sums are easy: multiprocessors take in any number of bytes, products take no time unless they are most of
# it.
PLAIN = Constants(
    EngineConstants(1e-3, 1e-5, 1e-4, "made up", parallel_step_s=3e-3, all_reduce_s=1e-6),
    GpuConstants(1e9, 0.5, 0.5, 0.5, "made up"),
    KernelConstants(0.5, 1e9, 1e9, 1e9, 0.5, 0.5, 0.5, 2e-5, 1e-3, 1.5, 1e12),
)
QUICK = replace(PLAIN, gpu=replace(PLAIN.gpu, prefill_efficiency=1e9))  # no time for products
OVERHEAD = 1e-3 + 64e-5 + 1e-4


def test_a_decode_step_is_the_sum_a_hand_would_do():
    one = on("qwq-32b", "l20")
    read = 2 * (32_763_876_352 - 152_064 * 5120)
    expected = OVERHEAD + read / (864e9 * 0.5) + 1000 * 262_144 / (864e9 * 0.5)
    assert step_time_s(one, StepWork(decode_streams=1, kv_read_tokens=1000), QUICK) == pytest.approx(expected)


def test_each_stream_adds_its_own_time():
    one, two = (step_time_s(on("qwq-32b", "l20"), StepWork(decode_streams=n, kv_read_tokens=1000), QUICK) for n in (1, 2))
    assert two - one == pytest.approx(1e-4)


def test_quantised_layers_launch_more():
    one = on("qwq-32b-awq", "l20")
    read = one.model.linear_bytes + one.model.head_bytes
    expected = OVERHEAD + 64 * 2e-5 + read / (864e9 * 0.5)
    assert step_time_s(one, StepWork(decode_streams=1), QUICK) == pytest.approx(expected)


def test_a_long_prompts_step_is_arithmetic():
    one, tokens = on("qwen2.5-7b-instruct", "a100-80gb"), 16_384
    pairs = tokens * (tokens + 1) // 2
    blocks = 28 * 128  # heads x tiles of 128 queries: 33.2 rounds of 108 multiprocessors, so 34
    attention = pairs * 4 * 28 * 28 * 128 / (312e12 * 0.5 * blocks / (34 * 108))
    head = 2 * (one.model.parameters - 6_525_288_448 - 152_064 * 3584) / (2039e9 * 0.5)
    products, weights = 2 * 6_525_288_448 * tokens / (312e12 * 0.5), 2 * 6_525_288_448 / (2039e9 * 0.5)
    expected = 1e-3 + 28e-5 + (products**3 + weights**3) ** (1 / 3) + head + attention
    assert one.model.linear_parameters == 6_525_288_448
    assert step_time_s(one, StepWork(prefill_tokens=tokens, prefill_pairs=pairs), PLAIN) == pytest.approx(expected)


@pytest.mark.parametrize("topology", ["nvlink", "pcie-p2p", "pcie-host"])
def test_tensor_parallelism_shares_the_work_and_pays_for_all_reduces(topology):
    work = StepWork(decode_streams=1, kv_read_tokens=1000)
    single, double = (step_time_s(on("qwq-32b", "l20", tp, interconnect=topology), work, QUICK) for tp in (1, 2))
    reduces = 128 * (all_reduce_s(topology, 2, 5120 * 2, 32e9) + 1e-6)
    assert double == pytest.approx(OVERHEAD + 3e-3 + (single - OVERHEAD) / 2 + reduces)


def test_what_a_multiprocessor_cannot_take_in_is_not_read_faster():
    """The H20 has twice the bandwidth of the A100 and 78 multiprocessors instead of 108."""
    bound = replace(PLAIN, gpu=replace(PLAIN.gpu, bytes_per_cycle=10.0, prefill_efficiency=1e9))
    one = on("qwq-32b", "h20")
    read = 2 * (32_763_876_352 - 152_064 * 5120)
    taken = step_time_s(one, StepWork(decode_streams=1), bound) - OVERHEAD
    assert taken > read / 10 / (78 * 1.98e9)
    assert taken < 1.3 * read / 10 / (78 * 1.98e9)


def test_four_bit_weights_become_compute_bound_at_a_batch():
    """Marlin on an A100-class GPU: equal times up to 16 tokens, twice at 64 (vLLM pull request 2497)."""
    one = on("qwq-32b-awq", "a100-80gb")
    seconds = {n: step_time_s(one, StepWork(decode_streams=n)) for n in (1, 16, 64, 256)}
    assert seconds[16] < 1.15 * seconds[1]
    assert seconds[64] > 1.2 * seconds[16]
    assert 3 < seconds[256] / seconds[64] < 4.2


def test_more_streams_touch_more_experts():
    one = on("qwen3-30b-a3b", "h100")
    weights = [step_time.step_time(one, StepWork(decode_streams=n), one.constants).weights_s for n in (1, 8, 64, 512)]
    assert weights == sorted(weights)
    assert weights[1] / weights[0] > 3
    assert weights[3] / weights[2] < 1.5  # all 128 are touched by then


def test_layers_with_a_window_read_no_more_than_the_window():
    one = on("gpt-oss-20b", "h100")
    short, long = (step_time_s(one, StepWork(decode_streams=1, kv_read_tokens=n), QUICK) for n in (1000, 2000))
    assert long - short == pytest.approx(1000 * 12 * 2 * 8 * 64 * 2 / (3350e9 * 0.5))


@pytest.mark.parametrize(
    ("version", "streams", "tp", "expected"),
    [
        ("0.6.4", 64, 1, 1.0),  # FlashAttention
        ("0.6.3.post1", 16, 1, 1.5),  # 16 x 32 = 512 blocks: contexts are split
        ("0.5", 64, 4, 1.5),  # 64 x 32 / 4
        ("0.5", 17, 1, 4 * 1.675),  # each of 4 query heads reads its own copy, at 1e12 instead of 3350e9 x 0.5 bytes/s
        ("0.4.2", 64, 1, 1.0),
    ],
)
def test_old_vllm_read_the_cache_of_window_models_by_pages(version, streams, tp, expected):
    one = on("mistral-7b-v0.1", "h100", tp, "vllm", engine_version=version)
    work = StepWork(decode_streams=streams, kv_read_tokens=1000 * streams)
    flash_s = 1000 * streams * 2 * 32 * 8 / tp * 128 * 2 / (3350e9 * 0.5)
    assert step_time.step_time(one, work, PLAIN).kv_s == pytest.approx(expected * flash_s)
    assert step_time.step_time(replace(one, engine="sglang"), work, PLAIN).kv_s == pytest.approx(flash_s)


def test_a_machines_factors_stretch_their_parts():
    work = StepWork(prefill_tokens=100, prefill_pairs=5050, decode_streams=4, kv_read_tokens=5000)
    one = on("qwq-32b", "l20", 2)
    plain = step_time.step_time(one, work, PLAIN)
    both = [replace(PLAIN, machine=Machine(**factors)) for factors in ({"overhead": 2.0}, {"streams": 2.0})]
    longer = [step_time.step_time(one, work, constants).overhead_s - plain.overhead_s for constants in both]
    assert longer[1] == pytest.approx(4 * PLAIN.engine.stream_s + 5000 * PLAIN.engine.context_s)
    assert sum(longer) == pytest.approx(plain.overhead_s)
    for part, factor in (
        ("kv_s", "kv"),
        ("attention_s", "prefill"),
        ("all_reduce_s", "all_reduce"),
    ):
        slow = step_time.step_time(one, work, replace(PLAIN, machine=Machine(**{factor: 2.0})))
        assert getattr(slow, part) == pytest.approx(2 * getattr(plain, part))


def test_no_work_takes_no_time():
    assert step_time_s(on("qwq-32b", "l20"), StepWork()) == 0


work = st.builds(
    StepWork,
    prefill_tokens=st.integers(0, 8192),
    prefill_pairs=st.integers(0, 10**9),
    decode_streams=st.integers(1, 512),
    kv_read_tokens=st.integers(0, 10**6),
)
deployments = st.builds(
    on,
    st.sampled_from(
        [
            "qwen2.5-7b-instruct",
            "qwq-32b-awq",
            "qwen3-32b-fp8",
            "qwen2.5-72b-instruct-gptq-int8",
            "gpt-oss-120b",
            "deepseek-r1",
        ]
    ),
    st.sampled_from(sorted(gpus.GPUS)),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["vllm", "sglang"]),
)


@given(deployments, work, st.sampled_from(["prefill_pairs", "decode_streams", "kv_read_tokens"]))
def test_more_work_never_takes_less_time(deployment, less, key):
    more = replace(less, **{key: getattr(less, key) * 2 + 1})
    assert 0 < step_time_s(deployment, less) <= step_time_s(deployment, more)


@given(deployments, work)
def test_no_step_is_faster_than_reading_the_weights(deployment, one):
    read = deployment.model.weight_bytes_read_per_token / (deployment.gpu.bandwidth_bytes_per_s * deployment.tp)
    assert step_time_s(deployment, one) > read


@given(deployments, st.integers(1, 40_000), st.sampled_from([512, 2048, 8192]))
def test_prefill_is_the_sum_of_its_chunks(deployment, prompt, chunk):
    steps = [
        StepWork(prefill_tokens=n, prefill_pairs=n * done + n * (n + 1) // 2)
        for done in range(0, prompt, chunk)
        for n in [min(chunk, prompt - done)]
    ]
    assert sum(step.prefill_pairs for step in steps) == prompt * (prompt + 1) // 2
    expected = sum(step_time_s(deployment, step) for step in steps)
    assert step_time.prefill_s(deployment, prompt, chunk) == pytest.approx(expected)


@given(deployments, st.integers(1, 5000), st.integers(1, 200), st.integers(1, 16))
def test_decode_is_the_sum_of_its_steps(deployment, prompt, steps, streams):
    expected = sum(
        step_time_s(deployment, StepWork(decode_streams=streams, kv_read_tokens=streams * (prompt + n)))
        for n in range(1, steps + 1)
    )
    assert step_time.decode_s(deployment, prompt, steps, streams) == pytest.approx(expected)


@given(deployments, st.integers(1, 20_000), st.integers(1, 64))
def test_a_prompt_beside_others_delays_them_by_no_more_than_its_prefill(deployment, prompt, streams):
    chunk = step_time.chunk_tokens(deployment, prompt + 1000)
    alone = step_time.prefill_s(deployment, prompt, chunk)
    beside = step_time.beside_s(deployment, prompt, chunk, streams, prompt)
    assert 0 < beside <= alone * (1 + 1e-9) if not deployment.model.experts else beside > 0


def test_vllm_mixes_prompts_with_decoding_and_sglang_halts_it():
    vllm, sglang = (on("qwq-32b", "l20", 2, engine) for engine in ("vllm", "sglang"))
    assert step_time.beside_s(sglang, 1000, 2048, 8, 1000) == step_time.prefill_s(sglang, 1000, 2048)
    assert step_time.beside_s(vllm, 1000, 2048, 8, 1000) < step_time.prefill_s(vllm, 1000, 2048)


@pytest.mark.parametrize(
    ("gpu", "engine", "version", "total", "chunk"),
    [
        ("a100-80gb", "vllm", "0.6.3", 32_768, 32_768),
        ("a100-80gb", "vllm", "0.6.3", 32_769, 512),
        ("a100-80gb", "vllm-sim", "", 40_000, 2048),
        ("h100", "vllm", "0.11.0", 40_000, 8192),
        ("b200", "vllm", "", 40_000, 16_384),
        ("mi300x", "sglang", "", 40_000, 16_384),
        ("a100-80gb", "sglang", "", 40_000, 8192),
        ("rtx-4090", "vllm", "0.19.0", 40_000, 2048),
        ("h20", "sglang", "", 40_000, 8192),
        ("l20", "sglang", "", 40_000, 4096),
        ("a10", "other", "", 40_000, 2048),
    ],
)
def test_prompts_are_cut_as_the_engine_does(gpu, engine, version, total, chunk):
    one = on("qwen2.5-7b-instruct", gpu, 1, engine, engine_version=version)
    assert step_time.chunk_tokens(one, total) == chunk


def test_a_step_with_drafts_verifies_them_and_yields_several_tokens():
    drafts = Speculation(2.5, 4, 3)
    one = on("qwq-32b", "l20", speculation=drafts)
    layer = 2 * (one.model.linear_parameters / 64 + 32_000 * 5120) / (864e9 * 0.5)
    work = StepWork(decode_streams=2, kv_read_tokens=2 * 1051)
    ten = step_time.step_time(on("qwq-32b", "l20"), StepWork(decode_streams=10), QUICK)
    verify = step_time.step_time(one, work, QUICK)
    assert (verify.weights_s, verify.all_reduce_s) == (ten.weights_s, ten.all_reduce_s)
    assert verify.drafts_s == pytest.approx(3 * (1e-3 + layer))
    assert step_time.decode_s(one, 1000, 101 - 1, 2, QUICK) == pytest.approx(100 / 2.5 * verify.total_s, rel=1e-3)
    assert step_time.step_time(one, StepWork(prefill_tokens=5), QUICK).drafts_s == 0
