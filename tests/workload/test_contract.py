"""The contract: its defaults, its bounds, the body it makes, its differences."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import UsageError
from loadtest.workload.contract import (
    Contract,
    check_format,
    contract_differences,
    from_table,
    prompt_tokens_at_most,
    within,
)
from loadtest.workload.prompts import Prompt
from tests.support.engine_settings import EXAMPLES

PLAIN = Prompt(id="a", messages=({"role": "user", "content": "Why?"},))
RECORDED = Prompt(id="b", messages=PLAIN.messages, thinking_tokens=900, answer_tokens=100)


def test_the_whole_body():
    assert Contract().body(PLAIN, "qwq-32b") == {
        "model": "qwq-32b",
        "messages": [{"role": "user", "content": "Why?"}],
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 40,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "seed": 0,
        "max_tokens": 32768,
    }


@pytest.mark.parametrize(
    ("contract", "prompt", "forced"),
    [
        (Contract(), RECORDED, None),
        (Contract(mode="equal-work"), RECORDED, 1000),
        (Contract(mode="equal-work"), PLAIN, 32768),
        (Contract(mode="equal-work", max_tokens=50), PLAIN, 50),
        (Contract(mode="equal-work", max_tokens=950), RECORDED, 950),
        (Contract(mode="equal-work"), Prompt(id="c", messages=PLAIN.messages, max_tokens=7), 7),
        (Contract(mode="equal-work"), Prompt(id="c", messages=PLAIN.messages, answer_tokens=0), 1),
    ],
)
def test_forced_lengths(contract, prompt, forced):
    assert contract.forced_tokens(prompt) == forced
    body = contract.body(prompt, "m")
    assert body.get("min_tokens") == forced
    assert body.get("ignore_eos") == (None if forced is None else True)
    assert body["max_tokens"] == (contract.limit_tokens(prompt) if forced is None else forced)


def test_a_prompts_own_limit_only_lowers():
    prompt = Prompt(id="c", messages=PLAIN.messages, max_tokens=100)
    assert Contract().body(prompt, "m")["max_tokens"] == 100
    assert Contract(max_tokens=10).body(prompt, "m")["max_tokens"] == 10


def test_only_a_simulator_is_told_the_split():
    contract = Contract(mode="equal-work", max_tokens=950)
    assert contract.body(RECORDED, "m", engine="vllm-sim")["loadtest_sim"] == {"thinking_tokens": 900, "answer_tokens": 50}
    for engine in ("vllm", "sglang", "other"):
        assert "loadtest_sim" not in contract.body(RECORDED, "m", engine=engine)
    assert "loadtest_sim" not in contract.body(PLAIN, "m", engine="vllm-sim")
    assert Contract().body(RECORDED, "m", engine="sglang-sim")["loadtest_sim"] == {
        "thinking_tokens": 900,
        "answer_tokens": 100,
    }


def test_extra_body_comes_last_and_omitted_keys_go():
    contract = Contract(extra_body={"temperature": 1.0, "logit_bias": {"5": 3}}, omit=("top_k", "continuous_usage_stats"))
    body = contract.body(PLAIN, "m")
    assert (body["temperature"], body["logit_bias"]) == (1.0, {"5": 3})
    assert "top_k" not in body
    assert body["stream_options"] == {"include_usage": True}


def test_a_body_shares_nothing_with_its_prompt():
    body = Contract().body(PLAIN, "m")
    body["messages"][0]["content"] = "changed"
    body["stream_options"].clear()
    assert PLAIN.messages[0]["content"] == "Why?"
    assert Contract().body(PLAIN, "m")["stream_options"]


# One value for each key that differs from the default; and one that is refused.
OTHERS: dict[str, tuple[Any, Any]] = {
    "temperature": (0.7, -0.1),
    "top_p": (1.0, 1.1),
    "top_k": (20, -2),
    "min_p": (0.1, -0.1),
    "presence_penalty": (1.5, 2.5),
    "repetition_penalty": (1.05, 0),
    "max_tokens": (1024, 0),
    "mode": ("equal-work", "equal"),
    "extra_body": ({"logprobs": True}, {"messages": []}),
    "omit": (("top_k",), ("temperature",)),
    "grammar": (False, "off"),
    "thinking_prelude": ("none", "maybe"),
    "history": ("everything", "nothing"),
    "output_format": ("free", "xml"),
    **EXAMPLES,
}


def test_every_key_is_tried():
    assert set(OTHERS) == {f.name for f in fields(Contract)}


@pytest.mark.parametrize("key", OTHERS)
def test_each_difference_is_named(key):
    other = Contract(**{key: OTHERS[key][0]})
    assert contract_differences(Contract(), other) == {key: (getattr(Contract(), key), OTHERS[key][0])}
    assert contract_differences(other, other) == {}


@pytest.mark.parametrize("key", OTHERS)
def test_each_bad_value_is_refused_by_name(key):
    with pytest.raises(UsageError, match=rf"^contract: {key}: expected .*, got ") as caught:
        Contract(**{key: OTHERS[key][1]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "0.6", None])
def test_a_temperature_is_a_number(value):
    with pytest.raises(UsageError, match="contract: temperature"):
        Contract(temperature=value)


@pytest.mark.parametrize("key", ["messages", "model", "stream", "stream_options"])
def test_extra_body_leaves_our_own_keys_alone(key):
    with pytest.raises(UsageError, match="contract: extra_body: expected a table that leaves"):
        Contract(extra_body={key: 1})


def test_the_output_must_fit_the_context():
    with pytest.raises(UsageError, match=r"max_tokens: expected less than context_tokens \(8192\)"):
        Contract(context_tokens=8192)
    assert Contract(context_tokens=8192, max_tokens=8191).context_tokens == 8192


def test_output_is_lowered_to_the_room_that_is_left():
    prompt = Prompt(id="a", messages=({"role": "user", "content": "ab12 é"},))
    assert prompt_tokens_at_most(prompt) == 128 + 2 + 3  # 2 digits; a, b, space and the two bytes of é, by two
    assert within(Contract(), [prompt], 1133).max_tokens == 1000
    assert within(Contract(max_tokens=50), [prompt], 1133).max_tokens == 50
    longer = Prompt(id="b", messages=({"role": "user", "content": "x" * 2000},))
    assert within(Contract(), [prompt, longer], 1129).max_tokens == 1
    with pytest.raises(UsageError, match=r"expected more than the 1128 that prompt 'b' may take, got 1128; raise it"):
        within(Contract(), [prompt, longer], 1128)


@pytest.mark.parametrize(
    ("text", "answer_format", "wanted"),
    [
        ("2+2?", "boxed", r"\boxed"),
        ("Which?", "json", "answer"),
        (r"2+2? Use \boxed{}.", "boxed", None),
        ("2+2?", "none", None),
    ],
)
def test_an_answer_is_checked_only_for_a_form_that_is_asked_for(text, answer_format, wanted):
    prompt = Prompt(id="q", messages=({"role": "user", "content": text},), answer="4", answer_format=answer_format)
    check_format(Contract(output_format="free"), [prompt])
    if wanted is None:
        check_format(Contract(), [prompt])
        return
    with pytest.raises(UsageError, match="contract: output_format: expected .*, got 'q', which is checked as"):
        check_format(Contract(), [prompt])


def test_a_table_with_a_slip_of_the_pen():
    with pytest.raises(
        UsageError, match="contract: temprature: expected a key of the contract, got an unknown one; did you mean"
    ):
        from_table({"temprature": 0.6})
    with pytest.raises(UsageError, match="known keys: .*, temperature, top_p"):
        from_table({"zzz": 1})


@given(st.fixed_dictionaries({}, optional={key: st.just(values[0]) for key, values in OTHERS.items()}))
def test_a_contract_survives_the_manifest(table):
    contract = from_table(table)
    again = from_table(json.loads(json.dumps(asdict(contract))))
    assert again == contract
    assert contract_differences(contract, Contract()).keys() == table.keys()


def test_one_answer_per_request_is_all_that_is_asked_for():
    with pytest.raises(UsageError, match="contract: extra_body: n: expected 1, one answer per request, got 2"):
        Contract(extra_body={"n": 2})
    assert Contract(extra_body={"n": 1}).extra_body == {"n": 1}
