"""Bursts: what is sent, to whom, and that no prefix is met twice."""

import json

import pytest

from loadtest.errors import UsageError
from loadtest.workload import workload
from loadtest.workload.bursts import LONE_PROMPTS, BurstPlan, contexts_within, typical_prompts
from loadtest.workload.contract import Contract

MATH = workload.load("math:n=20")


def bodies(plan, engine="vllm"):
    made = plan.bursts(MATH, Contract(), model="m", engine=engine)
    return [[json.loads(item.prepared.body) for item in one.items] for one in made]


def test_a_pass_has_a_warmup_lone_requests_and_a_burst_for_each_context():
    plan = BurstPlan(concurrency=3, contexts_tokens=(100, 900))
    made = plan.bursts(MATH, Contract(), model="m", engine="vllm")
    assert [(one.phase, one.number, len(one.items)) for one in made] == [
        ("warmup", None, 3), *[("measure", None, 1)] * LONE_PROMPTS, ("measure", 0, 3), ("measure", 1, 3),
    ]  # fmt: skip
    measured = [item for one in made if one.phase == "measure" for item in one.items]
    assert [item.index for item in measured] == list(range(plan.requests))
    assert {item.prepared.forced_tokens for item in made[-1].items} == {256}


def test_lengths_are_forced_and_contexts_as_asked():
    *_, short, long = bodies(BurstPlan(concurrency=2, contexts_tokens=(100, 900), output_tokens=64))
    for body in (*short, *long):
        assert (body["min_tokens"], body["max_tokens"], body["ignore_eos"]) == (64, 64, True)
    assert [len(body["messages"][0]["content"]) // 4 for body in (short[0], long[0])] == pytest.approx([100, 900], abs=3)


def test_no_two_requests_of_a_run_begin_alike_and_both_engines_get_the_same():
    plans = [BurstPlan(concurrency=c, round=n) for c in (1, 4) for n in (1, 2)]
    bursts = [burst for plan in plans for burst in bodies(plan)[1 + LONE_PROMPTS :]]
    fillers = [body["messages"][0]["content"][:60] for burst in bursts for body in burst]
    assert len(set(fillers)) == len(fillers) == 2 * 3 * (1 + 4)
    a, b = (bodies(BurstPlan(concurrency=2), engine) for engine in ("sglang", "vllm"))
    assert a == b


def test_contexts_are_sized_in_tokens_of_the_server():
    plan = BurstPlan(concurrency=1, contexts_tokens=(200, 1500))
    sized = plan.bursts(MATH, Contract(), model="m", engine="vllm", tokens_per_word=plan.tokens_per_word(432))
    words = [len(burst.items[0].prepared.prompt.messages[0]["content"].split()) for burst in sized]
    assert (words[0], *words[-2:]) == pytest.approx((200, 100, 750), abs=4)  # the warm-up tells it, and is as it was
    assert plan.tokens_per_word(None) == 1.0


def test_no_prefix_cache_knows_a_lone_prompt():
    plans = [BurstPlan(concurrency=c, round=n) for c in (1, 4) for n in (1, 2)]
    lone = [burst[0]["messages"][0]["content"] for plan in plans for burst in bodies(plan)[1 : 1 + LONE_PROMPTS]]
    assert len({text[:8] for text in lone}) == len(lone)


def test_lone_prompts_are_spread_over_the_lengths_of_the_workload():
    chars = sorted(prompt.chars for prompt in MATH.prompts)
    chosen = [prompt.chars for prompt in typical_prompts(MATH.prompts)]
    assert chosen == [chars[2], chars[7], chars[12], chars[17]]
    assert len(typical_prompts(MATH.prompts[:1])) == LONE_PROMPTS


def test_contexts_shrink_to_what_a_server_holds():
    assert contexts_within(None, 1, None) == (200, 1500, 5000)
    assert contexts_within(1000, 1, None)[-1] == 1000 - 256 - 128
    assert 16 * (contexts_within(32768, 16, 80_000)[-1] + 256) <= 0.8 * 80_000
    with pytest.raises(UsageError, match="expected room for prompts of 64 tokens and 256 of output"):
        contexts_within(400, 8, None)


@pytest.mark.parametrize("contexts", [(), (5,), (7, 7), (0, 5)])
def test_a_line_needs_two_contexts(contexts):
    with pytest.raises(UsageError, match="two or more"):
        BurstPlan(concurrency=1, contexts_tokens=contexts)
