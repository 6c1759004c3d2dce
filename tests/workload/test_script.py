"""Which request comes next: fixed by seed and index, shared out without gap or overlap."""

import hashlib
import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from loadtest.workload.contract import Contract
from loadtest.workload.script import Rounds, Script, indices, slots_of
from loadtest.workload.workload import load


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 60))
def test_shares_are_disjoint_and_make_up_the_whole(users, workers, n):
    shares = [list(indices(slots_of(w, workers, users), users, n)) for w in range(workers)]
    assert sorted(i for share in shares for i in share) == list(range(n))


def test_a_worker_without_users_has_nothing_to_do():
    assert list(indices(slots_of(3, 4, 2), 2, 100)) == []


def test_without_a_number_it_does_not_end():
    endless = indices((1,), 2, None)
    assert [next(endless) for _ in range(3)] == [1, 3, 5]


def script(seed=7, **contract):
    return Script(load("math:n=5"), Contract(**contract), model="m", engine="other", seed=seed)


def test_an_item_depends_on_seed_and_index_alone():
    forwards, backwards = script(), script()
    wanted = [forwards.measured(i) for i in range(12)]
    assert [backwards.measured(i) for i in reversed(range(12))][::-1] == wanted
    assert [script(8).measured(i).prepared.prompt.id for i in range(12)] != [x.prepared.prompt.id for x in wanted]


def test_warm_up_asks_in_another_order():
    s = script()
    assert [s.warmup(i).prepared.prompt.id for i in range(5)] != [s.measured(i).prepared.prompt.id for i in range(5)]


def test_a_recorded_workload_keeps_its_order(tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_text('{"prompt": "late", "arrival_s": 5}\n{"prompt": "first", "arrival_s": 1}\n')
    s = Script(load(str(path)), Contract(), model="m", engine="other", seed=7)
    assert [s.measured(i).prepared.prompt.id for i in range(5)] == ["p0002", "p0001"] * 2 + ["p0002"]
    assert s.arrivals_s == (0.0, 4.0)
    path.write_text('{"prompt": "late", "arrival_s": 5}\n{"prompt": "first"}\n')
    assert Script(load(str(path)), Contract(), model="m", engine="other", seed=7).arrivals_s == ()


def test_the_body_is_encoded_and_hashed():
    item = script(mode="equal-work", max_tokens=50).measured(0)
    body = msgspec.json.decode(item.prepared.body)
    assert (body["model"], body["stream"], body["min_tokens"], item.prepared.forced_tokens) == ("m", True, 50, 50)
    assert item.prepared.sha256 == hashlib.sha256(item.prepared.body).hexdigest()


def asked(script, n):
    return [script.measured(i).prepared for i in range(n)]


def test_rounds_ask_one_set_of_prompts_each_with_a_salt_of_its_own():
    math = load("math:n=20")
    one, other = (
        Script(math, Contract(), model="m", engine="vllm", seed=1, rounds=Rounds(4, salt, 2))
        for salt in ("c01-r1", "c08-r1")
    )
    plain = [item.prompt.id for item in asked(Script(math, Contract(), model="m", engine="vllm", seed=1), 4)]
    for script in (one, other):
        ids = [item.prompt.id for item in asked(script, 12)]
        assert all(sorted(ids[k : k + 4]) == sorted(plain) for k in (0, 4, 8))
    salts = [json.loads(item.body)["cache_salt"] for script in (one, other) for item in asked(script, 12)]
    assert salts == [f"{name}-r1-{number}" for name in ("c01", "c08") for number in range(3) for _ in range(4)]
    warm = json.loads(one.warmup(0).prepared.body)["cache_salt"]
    assert warm == "c01-r1-w0"
    assert asked(one, 1)[0] is asked(one, 1)[0]
