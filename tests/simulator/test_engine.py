"""The simulator's engine in virtual time: hand-computed timelines, conservation, invariants under random load."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.errors import UsageError
from loadtest.perfmodel.memory import Speculation
from loadtest.perfmodel.step_time import StepWork
from loadtest.simulator.core import chat, faults, lengths
from loadtest.simulator.core.behaviour import BEHAVIOURS, behaviour
from loadtest.simulator.core.cache import TOKEN_CHARS, BlockCache, RadixCache, _Node
from loadtest.simulator.core.engine import Engine, EngineConfig
from loadtest.simulator.core.sequence import QueueFull, Request
from tests.simulator import replay

VLLM, SGLANG = behaviour("vllm-sim"), behaviour("sglang-sim")


def prompt(tokens, name="a"):
    """A prompt of so many tokens that shares nothing with one of another name."""
    return "".join(f"{name}{i:03d}"[-TOKEN_CHARS:] for i in range(tokens))


def by_hand(work):
    return 1 + work.prefill_tokens / 16 + work.decode_streams / 8


def unit(work):
    return 1.0


def engine(kind, kv_tokens, step_time_s=unit, **limits):
    return Engine(EngineConfig(behaviour=behaviour(kind), kv_tokens=kv_tokens, **limits), step_time_s)


def run(it, until_s=1e6):
    """Token times of every request; preemptions are left out."""
    times: dict[str, list[float]] = {}
    for event in it.advance(until_s):
        if event.n_tokens:
            times.setdefault(event.request_id, []).append(event.time_s)
    return times


def two_requests(kind):
    it = engine(kind, 1024, by_hand, prefill_budget_tokens=24)
    it.submit(Request(id="A", prompt=prompt(16, "a"), output_tokens=3), 0.0)
    events = it.advance(0.5)
    assert events == []
    it.submit(Request(id="B", prompt=prompt(32, "b"), output_tokens=2), 0.5)
    return run(it)


def test_mixed_batches_by_hand():
    # 0: A 16 prefill = 2. 2: A decodes, B's first 23 of the budget = 1 + 23/16 + 1/8. 4.5625: A decodes, B's last 9.
    assert two_requests("vllm-sim") == {"A": [2.0, 4.5625, 6.25], "B": [6.25, 7.375]}


def test_prefill_first_by_hand():
    # 0: A 16 = 2. 2: B 24 alone = 2.5. 4.5: B's last 8 = 1.5. 6: both decode = 1.25. 7.25: A alone = 1.125.
    assert two_requests("sglang-sim") == {"A": [2.0, 7.25, 8.375], "B": [6.0, 7.25]}


def test_work_of_a_step_counts_pairs_and_context():
    seen: list[StepWork] = []
    it = engine("vllm-sim", 1024, lambda work: seen.append(work) or 1.0, prefill_budget_tokens=6)
    it.submit(Request(id="A", prompt=prompt(10), output_tokens=3), 0.0)
    run(it)
    assert seen == [
        StepWork(prefill_tokens=6, prefill_pairs=21),  # 1 + 2 + .. + 6
        StepWork(prefill_tokens=4, prefill_pairs=34),  # 7 + 8 + 9 + 10
        StepWork(decode_streams=1, kv_read_tokens=11),
        StepWork(decode_streams=1, kv_read_tokens=12),
    ]


def test_preemption_by_recompute_by_hand():
    it = engine("vllm-sim", 64)
    for name in "AB":
        it.submit(Request(id=name, prompt=prompt(16, name), output_tokens=20), 0.0)
    events = it.advance(1e6)
    # Two blocks each hold 32 tokens: the 33rd of A, in the step that ends at 18, takes B's. B comes back when A ends at 20.
    assert [(e.time_s, e.request_id) for e in events if e.kind == "preempted"] == [(18.0, "B")]
    assert [(e.time_s, e.request_id) for e in events if e.kind == "finished"] == [(20.0, "A"), (23.0, "B")]
    assert [e.time_s for e in events if e.request_id == "B" and e.n_tokens] == [*range(1, 18), 21, 22, 23]
    assert it.totals.preemptions == 1
    assert it.totals.generation_tokens == 40


def test_retraction_by_hand():
    it = engine("sglang-sim", 100)
    for name in "AB":
        it.submit(Request(id=name, prompt=prompt(4, name), output_tokens=54), 0.0)
    events = it.advance(1e6)
    # 100 tokens hold both up to 46 decode steps; then B, the later of two equals, goes and waits for A to end at 54.
    assert [(e.time_s, e.request_id) for e in events if e.kind == "preempted"] == [(48.0, "B")]
    assert [(e.time_s, e.request_id) for e in events if e.kind == "finished"] == [(54.0, "A"), (61.0, "B")]


def test_retraction_takes_the_longest_prompt_among_equals():
    it = engine("sglang-sim", 104)
    it.submit(Request(id="long", prompt=prompt(8, "l"), output_tokens=54), 0.0)
    it.submit(Request(id="short", prompt=prompt(4, "s"), output_tokens=54), 0.0)
    assert [(e.time_s, e.request_id) for e in it.advance(1e6) if e.kind == "preempted"] == [(48.0, "long")]


def test_admission_holds_back_output_of_running_requests():
    it = engine("sglang-sim", 64)
    for name in "AB":
        it.submit(Request(id=name, prompt=prompt(16, name), output_tokens=20), 0.0)
    times = run(it)
    # B wants 16 + 20 of the 48 tokens left, of which 0.7 x 20 are held for A: it waits for A's end.
    assert times["A"] == list(range(1, 21))
    assert times["B"] == list(range(21, 41))


def test_max_running_is_a_limit():
    it = engine("vllm-sim", 1024, max_running=2)
    for name in "ABC":
        it.submit(Request(id=name, prompt=prompt(4, name), output_tokens=2), 0.0)
    assert run(it) == {"A": [1, 2], "B": [1, 2], "C": [3, 4]}


@pytest.mark.parametrize("kind", BEHAVIOURS)
def test_queue_limit_refuses(kind):
    it = engine(kind, 1024, max_running=1, max_queued=1)
    for name, now_s in (("A", 0.0), ("B", 0.5)):
        it.submit(Request(id=name, prompt=prompt(4, name), output_tokens=5), now_s)
        it.advance(now_s)
    with pytest.raises(QueueFull, match="1 requests are waiting, the limit is 1"):
        it.submit(Request(id="C", prompt=prompt(4, "c"), output_tokens=5), 0.6)
    assert set(run(it)) == {"A", "B"}


@pytest.mark.parametrize(("kind", "cached"), [("vllm-sim", 32), ("sglang-sim", 39)])
def test_same_prompt_again_is_cached_but_for_its_last_token(kind, cached):
    it = engine(kind, 1024, by_hand)
    it.submit(Request(id="A", prompt=prompt(40), output_tokens=2), 0.0)
    run(it)
    it.submit(Request(id="B", prompt=prompt(40), output_tokens=2), 100.0)
    it.advance(100.0)
    assert it.sequences["B"].cached_tokens == cached
    assert run(it)["B"][0] == 100 + 1 + (40 - cached) / 16
    assert it.totals.prefix_query_tokens == 80
    assert it.totals.prefix_hit_tokens == cached


@pytest.mark.parametrize("kind", BEHAVIOURS)
def test_flush_forgets_and_switch_disables(kind):
    for flushed, config in ((True, {}), (False, {"prefix_cache": False})):
        it = engine(kind, 1024, **config)
        it.submit(Request(id="A", prompt=prompt(40), output_tokens=2), 0.0)
        run(it)
        if flushed:
            it.cache.flush()
        it.submit(Request(id="B", prompt=prompt(40), output_tokens=2), 100.0)
        run(it)
        assert it.totals.prefix_hit_tokens == 0
        assert it.cache.used_tokens() == 0


@pytest.mark.parametrize("kind", BEHAVIOURS)
def test_abort_frees_everything(kind):
    it = engine(kind, 1024, max_running=1)
    for name in "AB":
        it.submit(Request(id=name, prompt=prompt(20, name), output_tokens=50), 0.0)
    it.advance(3.5)
    assert it.abort("A")
    assert it.abort("B")
    assert not it.abort("A")
    assert it.cache.used_tokens() == 0
    assert it.advance(100.0) == []
    assert it.next_time_s() is None


def test_bad_requests_are_refused():
    it = engine("vllm-sim", 64)
    with pytest.raises(UsageError, match="multiple of 4 characters, got 3"):
        Request(id="A", prompt="abc", output_tokens=1)
    with pytest.raises(UsageError, match="expected 1 or more, got 0"):
        Request(id="A", prompt="abcd", output_tokens=0)
    with pytest.raises(UsageError, match="do not fit"):
        it.submit(Request(id="A", prompt=prompt(60), output_tokens=5), 0.0)
    it.submit(Request(id="A", prompt=prompt(4), output_tokens=5), 0.0)
    with pytest.raises(UsageError, match="got 'A' again"):
        it.submit(Request(id="A", prompt=prompt(4), output_tokens=5), 0.0)


# -- conservation and invariants -------------------------------------------------------------------------------------------


def check_blocks(it, cache):
    held = Counter(block for s in it.sequences.values() for block in s.holding.blocks)
    assert [held[block] for block in range(len(cache._references))] == cache._references
    assert set(cache._free) == {block for block, n in enumerate(cache._references) if n == 0}
    assert all(cache._hash_of[block] == known for known, block in cache._cached.items())
    assert cache.used_tokens() == len(held) * cache.page_tokens


def check_tree(it, cache):
    holders: Counter[_Node] = Counter()
    for sequence in it.sequences.values():
        node = sequence.holding.node
        assert depth(node) == sequence.holding.tree_tokens
        while node is not cache._root:
            holders[node] += 1
            node = node.parent
    nodes = cache._nodes()
    assert all(node.holders == holders[node] for node in nodes)
    private = sum(s.holding.private_tokens for s in it.sequences.values())
    assert cache._free + private + sum(node.tokens for node in nodes) == cache.capacity_tokens
    assert cache._evictable == sum(node.tokens for node in nodes if not node.holders)
    assert all(node.parent.children[node.key[:TOKEN_CHARS]] is node for node in nodes if node.parent)


def depth(node):
    return 0 if node is None else node.tokens + depth(node.parent)


def check(it):
    """Everything that must hold between two steps."""
    if isinstance(it.cache, BlockCache):
        check_blocks(it, it.cache)
    elif isinstance(it.cache, RadixCache):
        check_tree(it, it.cache)
    assert it.cache.used_tokens() + it.cache.available_tokens() == it.cache.capacity_tokens
    assert len(it.running) + len(it.waiting) == len(it.sequences)
    assert len(it.running) <= it.max_running
    for sequence in it.running:
        assert 0 <= sequence.computed < sequence.known


load = st.lists(
    st.tuples(
        st.floats(0, 60),  # arrival
        st.sampled_from(["a", "b", "ab"]),  # prompts that share beginnings
        st.integers(1, 60),  # prompt tokens
        st.integers(1, 60),  # output tokens
        st.one_of(st.none(), st.floats(0, 100)),  # when the client goes away
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(sorted(BEHAVIOURS)),
    kv=st.integers(128, 400),
    budget=st.integers(1, 64),
    seats=st.integers(1, 6),
    speculation=st.sampled_from([None, Speculation(2.2, 4, 4)]),
    load=load,
)
def test_random_load_conserves_tokens_and_cache(kind, kv, budget, seats, speculation, load):
    it = engine(kind, kv, by_hand, prefill_budget_tokens=budget, max_running=seats, speculation=speculation)
    moments = [(at, "submit", i) for i, (at, *_) in enumerate(load)]
    moments += [(max(gone, load[i][0]), "abort", i) for i, (*_, gone) in enumerate(load) if gone is not None]
    tokens: Counter[str] = Counter()
    finished, aborted, last_s = set(), set(), 0.0
    for moment_s, what, i in [*sorted(moments), (1e9, "end", 0)]:
        while (next_s := it.next_time_s()) is not None and next_s <= moment_s:
            for event in it.advance(next_s):
                assert last_s <= event.time_s <= moment_s
                last_s = event.time_s
                tokens[event.request_id] += event.n_tokens
                finished |= {event.request_id} if event.kind == "finished" else set()
            check(it)
        if what == "submit":
            _, name, n_prompt, n_output, _ = load[i]
            it.submit(Request(id=str(i), prompt=prompt(n_prompt, name), output_tokens=n_output), moment_s)
        elif what == "abort" and it.abort(str(i)):
            aborted.add(str(i))
            check(it)
    assert finished | aborted == {str(i) for i in range(len(load))}
    assert all(tokens[i] == load[int(i)][3] for i in finished)
    assert all(tokens[i] < load[int(i)][3] for i in aborted)
    assert it.totals.generation_tokens == sum(tokens.values())
    assert it.cache.used_tokens() == 0
    assert not it.sequences
    it.cache.flush()
    assert it.cache.available_tokens() == it.cache.capacity_tokens


class Walking(Engine):
    """An engine that never leaps."""

    def leap(self, until_s):
        return None


def chats(kind, work, kv_tokens):
    served = chat.Served(behaviour=behaviour(kind), model="m", context_tokens=kv_tokens - 16, kv_tokens=kv_tokens)
    made = []
    for i, (n_prompt, thinking, answer) in enumerate(work):
        body = {"model": "m", "messages": [{"role": "user", "content": prompt(n_prompt, chr(97 + i))}]}
        body |= {"loadtest_sim": {"thinking_tokens": thinking, "answer_tokens": answer}}
        made.append(chat.parse(json.dumps(body).encode(), served))
    return made


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(BEHAVIOURS)),
    work=st.lists(st.tuples(st.integers(1, 30), st.integers(2, 60), st.integers(2, 30)), min_size=1, max_size=10),
    concurrency=st.integers(1, 6),
    kv=st.integers(200, 500),
    until_s=st.one_of(st.just(1e9), st.floats(1, 300)),
)
def test_leaping_equals_walking(kind, work, concurrency, kv, until_s):
    config = EngineConfig(behaviour=behaviour(kind), kv_tokens=kv, max_running=4)

    def step_time_s(w):
        return by_hand(w) + w.kv_read_tokens / 64

    todo = chats(kind, work, kv)
    leapt = list(replay.fast_forward(config, step_time_s, todo, concurrency, until_s=until_s))
    walked = list(
        replay.fast_forward(config, step_time_s, todo, concurrency, until_s=until_s, engine=Walking(config, step_time_s))
    )
    assert [flat(t) for t in leapt] == [pytest.approx(flat(t), rel=1e-9) for t in walked]


def flat(t):
    whole = [
        t.index,
        t.user,
        t.arrival_s,
        t.finished_s or -1.0,
        t.ended_s,
        t.completion_tokens,
        t.preemptions,
        t.cached_tokens,
    ]
    return [float(v) for v in (*whole, -1 if t.first_answer_chunk is None else t.first_answer_chunk, *t.chunk_s)]


def test_fast_forward_by_hand():
    config = EngineConfig(behaviour=VLLM, kv_tokens=1024)
    todo = chats("vllm-sim", [(4, 3, 3), (4, 2, 2), (4, 2, 3)], 1024)
    first, second, third = replay.fast_forward(config, unit, todo, 2, until_s=6.5)
    # Tokens 1 to 6; token 3 closes the thinking and token 6 is the end of text: neither has text of its own.
    assert (second.index, second.user, second.chunk_s, second.first_answer_chunk) == (0, 0, (1, 2, 4, 5), 2)
    assert (first.index, first.chunk_s, first.first_answer_chunk, first.finished_s) == (1, (1, 3), 1, 4)
    # The third starts when the second ends (4), is cut at 6.5 after two tokens, before its answer.
    assert (third.arrival_s, third.chunk_s, third.first_answer_chunk) == (4, (5,), None)
    assert (third.finished_s, third.ended_s, third.completion_tokens, third.finish_reason) == (None, 6.5, 2, None)


def test_fast_forward_keeps_exactly_c_in_flight():
    config = EngineConfig(behaviour=SGLANG, kv_tokens=4096)
    todo = chats("sglang-sim", [(5, 4 + i % 7, 3) for i in range(20)], 4096)
    timelines = list(replay.fast_forward(config, by_hand, todo, 3))
    assert sorted(t.index for t in timelines) == list(range(20))
    for user in range(3):
        mine = sorted((t for t in timelines if t.user == user), key=lambda t: t.arrival_s)
        assert [t.arrival_s for t in mine[1:]] == [t.finished_s for t in mine[:-1]]
    assert {t.user for t in timelines} == {0, 1, 2}


# -- lengths and text ------------------------------------------------------------------------------------------------------


def test_lengths_depend_on_prompt_and_seed_alone():
    draws = [lengths.draw_lengths(f"problem {i}", 0) for i in range(400)]
    assert draws == [lengths.draw_lengths(f"problem {i}", 0) for i in range(400)]
    assert draws != [lengths.draw_lengths(f"problem {i}", 1) for i in range(400)]
    middle = sorted(d.thinking_tokens for d in draws)[200]
    assert 0.85 * lengths.THINKING_MEDIAN_TOKENS < middle < 1.15 * lengths.THINKING_MEDIAN_TOKENS
    assert chats_equal_over_runtimes()


def chats_equal_over_runtimes():
    body = b'{"model":"m","messages":[{"role":"user","content":"Why?"}]}'
    served = chat.Served(behaviour=VLLM, model="m", context_tokens=32768, kv_tokens=90000)
    return chat.parse(body, served).output == chat.parse(body, replace(served, behaviour=SGLANG)).output


@pytest.mark.parametrize(
    ("limits", "tokens", "thinking", "closes", "finish"),
    [
        ({"max_tokens": 100}, 15, 10, True, "stop"),
        ({"max_tokens": 15}, 15, 10, True, "stop"),
        ({"max_tokens": 14}, 14, 10, True, "length"),
        ({"max_tokens": 10}, 10, 10, True, "length"),
        ({"max_tokens": 9}, 9, 9, False, "length"),
        ({"max_tokens": 100, "min_tokens": 40}, 40, 10, True, "stop"),
        ({"max_tokens": 30, "min_tokens": 40}, 30, 10, True, "length"),
        ({"max_tokens": 50, "ignore_eos": True}, 50, 10, True, "length"),
        ({"max_tokens": 5, "ignore_eos": True}, 5, 5, False, "length"),
    ],
)
def test_limits_of_a_request(limits, tokens, thinking, closes, finish):
    output = lengths.limit_lengths(lengths.Lengths(10, 5), **limits)
    assert (output.output_tokens, output.thinking_tokens) == (tokens, thinking)
    assert (output.closes_thinking, output.finish_reason) == (closes, finish)


def test_words_cannot_be_taken_for_an_answer():
    text = "".join((*lengths.THINKING_WORDS, *lengths.ANSWER_WORDS))
    assert not any(character.isdigit() or character in '\\{}"<>' for character in text)
    assert "simulated" in text
    assert 3.5 <= sum(map(len, lengths.THINKING_WORDS)) / len(lengths.THINKING_WORDS) <= 5.5


@pytest.mark.parametrize("text", ["stall", "nothing", "stall:x", "stall:-1", "reset:nan", "die:inf"])
def test_bad_faults_are_refused(text):
    with pytest.raises(UsageError, match="fault: expected"):
        faults.parse(text)


LIMITS = st.one_of(st.none(), st.integers(-5, 3000), st.integers(), st.floats(), st.text(max_size=3), st.booleans())
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "model": st.one_of(st.just("m"), st.text(max_size=3), st.none(), st.integers()),
        "messages": st.one_of(
            st.none(),
            st.lists(
                st.one_of(
                    st.integers(),
                    st.fixed_dictionaries(
                        {}, optional={"role": st.text(max_size=3), "content": st.one_of(st.none(), st.text())}
                    ),
                ),
                max_size=3,
            ),
        ),
        "temperature": LIMITS,
        "max_tokens": LIMITS,
        "max_completion_tokens": LIMITS,
        "min_tokens": LIMITS,
        "ignore_eos": st.booleans(),
        "stream": st.one_of(st.booleans(), st.text(max_size=2)),
        "stream_options": st.one_of(st.none(), st.integers(), st.dictionaries(st.text(max_size=3), st.booleans())),
        "loadtest_sim": st.dictionaries(st.sampled_from(["thinking_tokens", "answer_tokens", "fault"]), LIMITS),
    },
)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(sorted(BEHAVIOURS)), body=BODIES)
def test_any_body_is_accepted_within_the_limits_or_refused(kind, body):
    served = chat.Served(behaviour=behaviour(kind), model="m", context_tokens=512, kv_tokens=600)
    try:
        accepted = chat.parse(json.dumps(body).encode(), served)
    except chat.Refusal as refusal:
        assert 400 <= refusal.status < 500
        return
    assert 1 <= accepted.output.output_tokens <= accepted.max_tokens
    assert accepted.prompt_tokens + accepted.max_tokens <= 512
    assert 0 <= accepted.output.thinking_tokens <= accepted.output.output_tokens
    engine(kind, 600).submit(
        Request(id="a", prompt=accepted.prompt, output_tokens=accepted.output.output_tokens, max_tokens=accepted.max_tokens),
        0.0,
    )


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_refused(body):
    served = chat.Served(behaviour=VLLM, model="m", context_tokens=512, kv_tokens=600)
    with pytest.raises(chat.Refusal):
        chat.parse(body, served)


def test_unknown_runtime_is_refused():
    with pytest.raises(UsageError, match="expected one of vllm-sim, sglang-sim, got 'vllm'"):
        behaviour("vllm")
