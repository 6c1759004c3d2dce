"""Fit and bound: hand-computed goldens, the published claims, and properties."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import UsageError
from loadtest.perfmodel import gpus, memory, models
from loadtest.perfmodel.memory import Deployment, fit
from loadtest.perfmodel.prediction import predict

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


def test_bf16_does_not_fit_one_48_gb_gpu_and_says_why():
    answer = fit(on("qwq-32b", "l20"), context_tokens=1, concurrency=1)
    assert not answer.fits
    assert answer.kv_capacity_tokens == answer.max_streams == 0
    assert "needs 66.3 GB a GPU" in answer.reason
    assert answer.reason in answer.lines[-1]


def test_claim_4_gpus_of_24_gb_hold_bf16_with_room_for_kv_cache():
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
    assert best.model.weight_bytes > 2.5 * best.gpu.memory_bytes


@pytest.mark.parametrize("card", ["a10", "rtx-4090"])
def test_claim_24_gb_is_enough_at_4_bits_with_little_room(card):
    answer = fit(on("qwq-32b-awq", card), context_tokens=4096, concurrency=1)
    assert answer.fits
    assert answer.max_streams <= 2
    assert answer.kv_capacity_tokens < 12_000


def test_claim_4_bits_need_about_20_gb_agrees_with_the_weights():
    assert models.model("qwq-32b-awq").weight_bytes / GB == pytest.approx(20, rel=0.05)


@pytest.mark.parametrize(("model", "tp", "streams"), [("qwq-32b-awq", 1, 5), ("qwq-32b", 2, 4)])
def test_claim_5_or_below_is_what_the_kv_cache_holds(model, tp, streams):
    answer = fit(on(model, "l20", tp), context_tokens=CONVERSATION_TOKENS, concurrency=5)
    assert answer.max_streams == streams <= 5
    assert CONVERSATION_TOKENS * answer.kv_bytes_per_token / GB == pytest.approx(4.3, abs=0.05)


def test_kv_heads_are_copied_where_there_are_fewer_than_gpus():
    assert on("qwen2.5-72b-instruct", "a100-80gb", 16).kv_bytes_per_token_per_gpu == 327_680 / 8
    assert on("qwen2.5-72b-instruct", "a100-80gb", 8).kv_bytes_per_token_per_gpu == 327_680 / 8


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


@pytest.mark.parametrize(
    ("model", "gpu", "kv_bytes"),
    [
        (
            "qwen2.5-32b-instruct",
            "a100-80gb-pcie",
            9.70 * 2**30,
        ),  # vLLM 0.10.1: github.com/dennislee22/vLLM-benchmarking, test 7
        ("llama-3.1-8b", "rtx-4090", 44_500 * 131_072),  # vLLM 0.19: LLMServingSim's trace, tokens held over share in use
    ],
)
def test_the_kv_cache_is_as_large_as_vllm_made_it(model, gpu, kv_bytes):
    assert fit(on(model, gpu), context_tokens=1000).kv_bytes_per_card == pytest.approx(kv_bytes, rel=0.08)
