"""Fit, bound, step time and prediction: hand-computed goldens, the published claims, and properties."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import UsageError
from loadtest.perfmodel import gpus, memory, models, step_time
from loadtest.perfmodel.constants import Constants
from loadtest.perfmodel.memory import Deployment, fit
from loadtest.perfmodel.step_time import StepWork, predict, step_time_s

GB = 1e9
CONVERSATION_TOKENS = 16_384


def on(model, gpu, tp=1, engine="other", **options):
    return Deployment(models.model(model), gpus.gpu(gpu), tp, engine, **options)


# What does and does not fit ------------------------------------------------------------------------------------------


def test_fit_is_the_sum_a_hand_would_do():
    answer = fit(on("qwq-32b-awq", "l20"), context_tokens=CONVERSATION_TOKENS, concurrency=5)
    weights = (31_205_621_760 * (4 + 20 / 128) / 8) + 2 * (32_763_876_352 - 31_205_621_760)
    overhead = 2048 * (4 * 5120 + 2 * 27648) * 2 + 0.5e9
    assert answer.weight_bytes_per_card == pytest.approx(weights)
    assert answer.overhead_bytes_per_card == overhead
    assert answer.kv_capacity_tokens == int((48e9 * 0.9 - weights - overhead) // 262_144) == 87_970
    assert answer.max_streams == 87_970 // 16_384 == 5
    assert answer.fits
    assert answer.fits_concurrency
    assert answer.reason == ""


@pytest.mark.parametrize(("model", "tp", "bound"), [("qwq-32b-awq", 1, 44), ("qwq-32b-awq", 2, 89), ("qwq-32b", 2, 26)])
def test_the_bound_on_an_l20_is_as_the_facts_say(model, tp, bound):
    assert int(memory.single_stream_bound_tokens_per_s(on(model, "l20", tp))) == bound


def test_35_and_20_are_just_under_four_fifths_of_the_bound():
    assert 0.75 < 35 / memory.single_stream_bound_tokens_per_s(on("qwq-32b-awq", "l20")) < 0.8
    assert 0.75 < 20 / memory.single_stream_bound_tokens_per_s(on("qwq-32b", "l20", 2)) < 0.8


def test_bf16_does_not_fit_one_48_gb_card_and_says_why():
    answer = fit(on("qwq-32b", "l20"), context_tokens=1, concurrency=1)
    assert not answer.fits
    assert answer.kv_capacity_tokens == answer.max_streams == 0
    assert "needs 66.3 GB a card" in answer.reason
    assert answer.reason in answer.lines[-1]


def test_claim_4_cards_of_24_gb_hold_bf16_with_room_for_kv_cache():
    answer = fit(on("qwq-32b", "a10", 4), context_tokens=32_768, concurrency=1)
    assert answer.fits
    assert answer.weight_bytes_per_card / GB == pytest.approx(16.4, abs=0.05)
    assert answer.max_streams == 2


def test_claim_123_gb_of_files_is_not_one_copy_of_the_weights():
    assert 123 / (models.model("qwq-32b").weight_bytes / GB) == pytest.approx(1.9, abs=0.05)


@pytest.mark.parametrize("card", ["a10", "rtx-4090"])
def test_claim_24_gb_is_enough_is_never_true_for_bf16(card):
    best = on("qwq-32b", card, memory_fraction=1.0)
    assert not fit(best, context_tokens=1, concurrency=1).fits
    assert best.model.weight_bytes > 2.7 * best.gpu.memory_bytes


@pytest.mark.parametrize("card", ["a10", "rtx-4090"])
def test_claim_24_gb_is_enough_at_4_bits_with_little_room(card):
    answer = fit(on("qwq-32b-awq", card), context_tokens=4096, concurrency=1)
    assert answer.fits
    assert answer.max_streams == 1
    assert answer.kv_capacity_tokens < 8192


def test_claim_4_bits_need_about_20_gb_agrees_with_the_weights():
    assert models.model("qwq-32b-awq").weight_bytes / GB == pytest.approx(20, rel=0.05)


@pytest.mark.parametrize(("model", "tp", "streams"), [("qwq-32b-awq", 1, 5), ("qwq-32b", 2, 4)])
def test_claim_5_or_below_is_what_the_kv_cache_holds(model, tp, streams):
    answer = fit(on(model, "l20", tp), context_tokens=CONVERSATION_TOKENS, concurrency=5)
    assert answer.max_streams == streams <= 5
    assert CONVERSATION_TOKENS * answer.kv_bytes_per_token / GB == pytest.approx(4.3, abs=0.05)


def test_kv_heads_are_copied_where_there_are_fewer_than_cards():
    assert on("qwen2.5-72b-instruct", "a100-80gb", 16).kv_bytes_per_token_per_card == 327_680 / 8
    assert on("qwen2.5-72b-instruct", "a100-80gb", 8).kv_bytes_per_token_per_card == 327_680 / 8


@given(st.sampled_from(sorted(models.MODELS)), st.sampled_from(sorted(gpus.GPUS)), st.integers(1, 200_000))
def test_streams_never_hold_more_than_the_capacity(model, card, context):
    answer = fit(on(model, card), context_tokens=context, concurrency=3)
    assert answer.max_streams * context <= answer.kv_capacity_tokens < (answer.max_streams + 1) * context
    assert answer.fits == (answer.max_streams >= 1) == (answer.reason == "")
    assert answer.weight_bytes_per_card + answer.kv_bytes_per_card <= max(
        answer.usable_bytes_per_card, answer.weight_bytes_per_card
    )


def test_a_fit_and_a_prediction_become_json():
    answer = msgspec.json.decode(msgspec.json.encode(fit(on("qwq-32b", "l20", 2), context_tokens=100, concurrency=1)))
    assert answer["kv_capacity_tokens"] == 74_302
    assert len(answer["lines"]) == 7
    told = msgspec.json.decode(msgspec.json.encode(predict(on("qwq-32b", "l20", 2), prompt_tokens=9, output_tokens=9)))
    assert told["simulated"] is True
    assert told["tpot_s"]["low"] < told["tpot_s"]["value"] < told["tpot_s"]["high"]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: on("qwq-32b", "l20", 3), "tp 3: expected a divisor of the 40 attention heads"),
        (lambda: on("qwq-32b", "l20", 0), "tp 0"),
        (lambda: on("qwq-32b", "l20", 1, "tgi"), "engine 'tgi' is not known"),
        (lambda: on("qwq-32b", "l20", memory_fraction=1.1), "memory fraction 1.1"),
        (lambda: fit(on("qwq-32b", "l20"), context_tokens=0, concurrency=1), "context of 0 tokens"),
        (lambda: predict(on("qwq-32b", "l20"), prompt_tokens=1, output_tokens=0), "output tokens 0"),
    ],
)
def test_impossible_input_is_a_usage_error(make, complaint):
    with pytest.raises(UsageError, match=complaint):
        make()


# How long a step takes -----------------------------------------------------------------------------------------------

PLAIN = Constants(1e-3, 1e-5, 0.5, 0.5, 0.5, 0.5, 0.5, "made up, so that sums are easy")


def test_a_decode_step_is_the_sum_a_hand_would_do():
    one = on("qwq-32b", "l20")
    read = 2 * (32_763_876_352 - 152_064 * 5120)
    expected = 1e-3 + 64e-5 + read / (864e9 * 0.5) + 1000 * 262_144 / (864e9 * 0.5)
    assert step_time_s(one, StepWork(decode_streams=1, kv_read_tokens=1000), PLAIN) == pytest.approx(expected)


def test_a_long_prompts_step_is_arithmetic():
    one, tokens = on("qwen2.5-7b-instruct", "a100-80gb"), 16_384
    pairs = tokens * (tokens + 1) // 2
    blocks = 28 * 128  # heads x tiles of 128 queries: 33.2 rounds of 108 multiprocessors, so 34
    attention = pairs * 4 * 28 * 28 * 128 / (312e12 * 0.5 * blocks / (34 * 108))
    expected = 1e-3 + 28e-5 + 2 * 6_525_288_448 * tokens / (312e12 * 0.5) + attention
    assert one.model.linear_parameters == 6_525_288_448
    assert step_time_s(one, StepWork(prefill_tokens=tokens, prefill_pairs=pairs), PLAIN) == pytest.approx(expected)


def test_tensor_parallelism_shares_the_work_and_pays_for_all_reduces():
    work = StepWork(decode_streams=1, kv_read_tokens=1000)
    single, double = (step_time_s(on("qwq-32b", "l20", tp), work, PLAIN) for tp in (1, 2))
    shared = (single - 1e-3 - 64e-5) / 2
    reduces = 128 * (20e-6 + 5120 * 2 / 32e9)
    assert double == pytest.approx(1e-3 + 64e-5 + shared + reduces)


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
    st.sampled_from(["qwen2.5-7b-instruct", "qwq-32b-awq", "qwen3-32b-fp8", "qwen2.5-72b-instruct-gptq-int8"]),
    st.sampled_from(sorted(gpus.GPUS)),
    st.sampled_from([1, 2, 4]),
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


# What a request takes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "tp", "published"), [("qwq-32b-awq", 1, 35), ("qwq-32b-awq", 2, 50), ("qwq-32b", 2, 20)])
@pytest.mark.parametrize("engine", ["sglang", "vllm", "sglang-sim", "vllm-sim", "other"])
def test_the_published_speeds_are_predicted_within_15_percent(model, tp, published, engine):
    told = predict(on(model, "l20", tp, engine), prompt_tokens=500, output_tokens=2048)
    assert told.tokens_per_s_per_user.value == pytest.approx(published, rel=0.15)
    assert told.output_tokens_per_s.value == pytest.approx(published, rel=0.15)
    assert "predicted, not measured" in told.lines[0]


def test_a_second_card_helps_the_full_model_more():
    gain = {}
    for model in ("qwq-32b-awq", "qwq-32b"):
        one, two = (predict(on(model, "l20", tp), prompt_tokens=500, output_tokens=2048) for tp in (1, 2))
        gain[model] = two.tokens_per_s_per_user.value / one.tokens_per_s_per_user.value
    assert 1 < gain["qwq-32b-awq"] < gain["qwq-32b"] < 2


def test_a_lone_request_adds_up():
    told = predict(on("qwq-32b-awq", "l20"), prompt_tokens=6000, output_tokens=3000)
    whole = told.ttft_s.value + 2999 * told.tpot_s.value
    assert told.time_to_final_answer_s.value == pytest.approx(whole)
    assert told.output_tokens_per_s.value == pytest.approx(3000 / whole)
    assert told.tokens_per_s_per_user.value == pytest.approx(1 / told.tpot_s.value)
    assert told.tokens_per_s_per_user.value < memory.single_stream_bound_tokens_per_s(on("qwq-32b-awq", "l20"))


def test_one_token_has_no_gap():
    told = predict(on("qwq-32b-awq", "l20"), prompt_tokens=10, output_tokens=1)
    assert told.tpot_s is told.tokens_per_s_per_user is None
    assert told.ttft_s == told.time_to_final_answer_s


@given(deployments, st.integers(1, 4000), st.integers(2, 4000), st.integers(1, 64))
def test_more_streams_deliver_more_in_all_and_less_to_each(deployment, prompt, output, streams):
    few, many = (
        predict(deployment, prompt_tokens=prompt, output_tokens=output, concurrency=count)
        for count in (streams, streams + 1)
    )
    assert many.time_to_final_answer_s.value > few.time_to_final_answer_s.value
    assert many.tokens_per_s_per_user.value <= few.tokens_per_s_per_user.value * (1 + 1e-9)
    assert many.running_streams >= few.running_streams


def test_streams_beyond_the_kv_cache_wait():
    at = {c: predict(on("qwq-32b-awq", "l20"), prompt_tokens=384, output_tokens=16_000, concurrency=c) for c in (5, 10)}
    assert at[5].running_streams == at[10].running_streams == 5
    assert at[10].output_tokens_per_s == at[5].output_tokens_per_s
    assert at[10].time_to_final_answer_s.value == pytest.approx(2 * at[5].time_to_final_answer_s.value)
    assert at[10].ttft_s.value > 100 * at[5].ttft_s.value


def test_what_does_not_fit_is_predicted_and_says_so():
    told = predict(on("qwq-32b", "l20"), prompt_tokens=100, output_tokens=100, concurrency=4)
    assert not told.fits
    assert told.running_streams == 1
    assert "does not fit" in told.lines[-1]


def test_the_range_is_wider_where_nothing_was_calibrated():
    known = predict(on("qwen2.5-7b-instruct", "a100-80gb"), prompt_tokens=100, output_tokens=100).ttft_s
    guessed = predict(on("qwen2.5-7b-instruct", "l20"), prompt_tokens=100, output_tokens=100).ttft_s
    assert known.high / known.value < guessed.high / guessed.value


@pytest.mark.parametrize(
    ("gpu", "engine", "total", "chunk"),
    [
        ("a100-80gb", "other", 32_768, 32_768),
        ("a100-80gb", "vllm-sim", 32_769, 512),
        ("a100-80gb", "sglang", 40_000, 8192),
        ("h20", "other", 40_000, 8192),
        ("h20", "vllm", 40_000, 512),
    ],
)
def test_prompts_are_cut_as_the_engine_does(gpu, engine, total, chunk):
    assert step_time.chunk_tokens(on("qwen2.5-7b-instruct", gpu, 1, engine), total) == chunk
