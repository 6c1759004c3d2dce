"""Workloads: file formats and their errors, identity, order, replay."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import UsageError
from loadtest.grading.answers import check
from loadtest.records import folder, read, schema
from loadtest.records.manifest import Manifest
from loadtest.records.write import JsonlWriter, write_manifest
from loadtest.workload.prompts import BOXED_INSTRUCTION, Prompt
from loadtest.workload.replay import from_run
from loadtest.workload.workload import dump, load, make, schedule

DATA = Path(__file__).parents[3] / "shared" / "data"


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def user(text):
    return ({"role": "user", "content": text},)


def small(n):
    return make("small", tuple(Prompt(id=f"q{i}", messages=user(f"What is {i}?")) for i in range(n)), "test")


# --- formats


def test_aime_rows_are_sent_as_they_stand(tmp_path):
    spec = write(tmp_path / "aime.jsonl", {"prompt": rf"Find x. {BOXED_INSTRUCTION}", "answer": 204})
    workload = load(spec)
    assert workload.name == "aime"
    assert workload.source == spec
    assert workload.prompts == (
        Prompt(id="p0001", messages=user(rf"Find x. {BOXED_INSTRUCTION}"), answer="204", answer_format="boxed"),
    )
    assert workload.checkable == 1


def test_plain_prompts_have_nothing_to_check(tmp_path):
    workload = load(write(tmp_path / "plain.jsonl", {"prompt": "Tell me."}, "", {"prompt": "Why?", "answer": "42"}))
    assert [p.id for p in workload.prompts] == ["p0001", "p0002"]
    assert [p.answer_format for p in workload.prompts] == ["none", "none"]
    assert workload.checkable == 0


def test_a_text_file_holds_a_prompt_a_line(tmp_path):
    path = tmp_path / "plain.txt"
    path.write_text('[1] Why?\n\n  How? Put it in \\boxed{}.\r\n{"prompt": 5}\n')
    prompts = load(str(path)).prompts
    assert [p.messages[0]["content"] for p in prompts] == ["[1] Why?", r"How? Put it in \boxed{}.", '{"prompt": 5}']
    assert {p.answer for p in prompts} == {None}
    path.write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(UsageError, match=r"plain.txt:2: expected text in UTF-8"):
        load(str(path))


def test_json_prompts_are_recognised(tmp_path):
    rows = {"prompt": 'Choose. Use the `answer` field, e.g., {"answer": "C"}.', "answer": "B"}
    assert load(write(tmp_path / "choice.jsonl", rows)).prompts[0].answer_format == "json"


def test_math_rows_take_the_last_box_of_the_solution(tmp_path):
    rows = (
        {"problem": "Half of one?", "solution": r"Not \boxed{1} but \boxed{\frac{1}{2}}.", "level": "Level 1"},
        {"problem": "2+2?", "answer": "4", "solution": "trivial"},
    )
    first, second = load(write(tmp_path / "math.jsonl", *rows)).prompts
    assert first.answer == r"\frac{1}{2}"
    assert first.messages == user(f"Half of one?\n{BOXED_INSTRUCTION}")
    assert (second.answer, second.answer_format) == ("4", "boxed")


def test_openai_batch(tmp_path):
    parts = [{"type": "text", "text": "Why"}, {"type": "text", "text": "?"}]
    body = {
        "model": "m",
        "max_tokens": 50,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}],
    }
    (prompt,) = load(write(tmp_path / "batch.jsonl", {"custom_id": "r1", "method": "POST", "body": body})).prompts
    assert prompt.id == "r1"
    assert prompt.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"})
    assert prompt.max_tokens == 50


@pytest.mark.parametrize("as_lines", [True, False])
def test_sharegpt(tmp_path, as_lines):
    turns = [{"from": "system", "value": "S"}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    rows = [{"id": "c1", "conversations": turns}, {"id": "c2", "conversations": turns[1:]}]
    path = tmp_path / "chat.json"
    workload = load(write(path, *rows) if as_lines else write(path, json.dumps(rows, indent=1)))
    assert [p.id for p in workload.prompts] == ["c1", "c2"]
    assert workload.prompts[0].messages == ({"role": "system", "content": "S"}, {"role": "user", "content": "Hi"})
    assert workload.prompts[1].messages == user("Hi")


def test_a_byte_order_mark_and_windows_lines_are_no_obstacle(tmp_path):
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    assert len(load(str(path)).prompts) == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"prompt": "a"', ":2: expected JSON"),
        ("[1]", ":2: expected a JSON object, got list"),
        ({"prompt": ""}, ":2: prompt: expected a text that is not empty, got ''"),
        ({"prompt": 5}, ":2: prompt: expected a text that is not empty, got 5"),
        ({"promt": "a"}, "did you mean 'prompt'?"),
        ({"question": "a"}, ":2: expected one of the keys messages, prompt, problem, body, conversations, got 'question'"),
        ({"prompt": "a", "anwser": 5}, ":2: anwser: expected a known key, got one like 'answer'"),
        ({"prompt": "a", "answer": [5]}, ":2: answer: expected a text or a number, got [5]"),
        ({"prompt": "a", "max_tokens": "9"}, ":2: max_tokens: expected a whole number, got '9'"),
        ({"prompt": "a", "max_tokens": 0}, ":2: max_tokens: expected a number of at least 1, got 0"),
        ({"prompt": "a", "arrival_s": "x"}, ":2: arrival_s: expected seconds, got 'x'"),
        (
            {"prompt": "a", "answer_format": "latex"},
            ":2: answer_format: expected boxed | json | program | none | call | value, got 'latex'",
        ),
        ({"problem": "a", "solution": "no box"}, r":2: solution: expected a \boxed{} answer in it, got 'no box'"),
        ({"body": []}, ":2: body: expected an object, got []"),
        ({"body": {"model": "m"}}, ":2: body: expected the key messages"),
        ({"messages": "a"}, ":2: messages: expected a list of messages, got 'a'"),
        ({"messages": []}, ":2: messages: expected at least one message"),
        ({"messages": [{"role": "robot", "content": "a"}]}, ":2: messages: expected role (system, user, assistant, tool)"),
        ({"messages": [{"role": "user", "content": None}]}, ":2: messages: expected content as text, got None"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, ":2: messages: expected a last message of the user"),
        ({"conversations": []}, ":2: conversations: expected a list of turns"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, ":2: conversations: expected a human turn, got none"),
        ({"conversations": [{"from": "gpt"}]}, ":2: conversations: expected from and value"),
        ({"prompt": "a", "id": "p0001"}, "id: prompt 2 is named 'p0001' as prompt 1 is"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_key(tmp_path, row, said):
    with pytest.raises(UsageError) as caught:
        load(write(tmp_path / "bad.jsonl", {"prompt": "fine"}, row))
    assert said in str(caught.value)
    assert str(tmp_path / "bad.jsonl") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_file_and_a_wrong_name_say_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="expected at least one prompt, got none"):
        load(write(tmp_path / "empty.jsonl"))
    with pytest.raises(UsageError, match="did you mean 'ledger'"):
        load("leger:n=4")
    with pytest.raises(UsageError, match="expected a file or one of math"):
        load(str(tmp_path))


@pytest.mark.parametrize(("name", "first"), [("aime24", "204"), ("aime25", "70")])
def test_the_aime_files(name, first):
    path = DATA / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip("the AIME files are not at hand")
    workload = load(str(path))
    assert len(workload.prompts) == workload.checkable == 30
    assert workload.prompts[0].answer == first
    assert all(check(rf"\boxed{{{p.answer}}}", p) for p in workload.prompts)


def test_the_example_file_is_checkable():
    path = Path(__file__).parents[2] / "scenarios" / "workloads" / "questions.jsonl"
    workload = load(str(path))
    assert workload.checkable == len(workload.prompts) == 6
    assert workload.prompts[5].answer_format == "json"


# --- identity


def test_identity_is_of_the_content_alone(tmp_path):
    rows = [{"prompt": "a", "note": "x"}, {"prompt": "b"}]
    one = load(write(tmp_path / "one.jsonl", *rows))
    other = load(write(tmp_path / "other.jsonl", {"prompt": "a"}, "", {"prompt": "b"}))
    assert one.identity == other.identity
    assert load(write(tmp_path / "swapped.jsonl", *rows[::-1])).identity != one.identity
    assert load(write(tmp_path / "answer.jsonl", rows[0], {"prompt": "b", "answer": "4"})).identity != one.identity


def test_identity_is_the_hash_of_canonical_json():
    workload = make("x", (Prompt(id="a", messages=user("Why?")),), "test")
    content = b'{"answer_format":"none","id":"a","messages":[{"content":"Why?","role":"user"}]}\n'
    assert dump(workload) == content
    assert workload.identity == hashlib.sha256(content).hexdigest()


TEXT = st.text(min_size=1, max_size=20).filter(str.strip)
COUNT = st.none() | st.integers(1, 10**6)
PROMPTS = st.lists(
    st.builds(
        Prompt,
        id=TEXT,
        messages=TEXT.map(user),
        answer=st.none() | TEXT,
        answer_format=st.sampled_from(["boxed", "json", "program", "none"]),
        thinking_tokens=COUNT,
        answer_tokens=COUNT,
        max_tokens=COUNT,
        arrival_s=st.none() | st.floats(0, 1e6),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda prompt: prompt.id,
)


@given(PROMPTS)
def test_what_is_dumped_is_read_back_with_equal_identity(tmp_path_factory, prompts):
    workload = make("any", tuple(prompts), "test")
    path = tmp_path_factory.getbasetemp() / "dumped.jsonl"
    path.write_bytes(dump(workload))
    again = load(str(path))
    assert again.prompts == workload.prompts
    assert again.identity == workload.identity


# --- order


def test_the_order_is_known():
    order = [p.id for p in schedule(small(5), seed=7, n=10)]
    key = lambda number: sorted(range(5), key=lambda i: hashlib.sha256(f"7/{number}/{i}".encode()).digest())  # noqa: E731
    assert order == [f"q{i}" for i in key(0) + key(1)]


@given(size=st.integers(1, 12), seed=st.integers(0, 99), start=st.integers(0, 60), n=st.integers(0, 30))
def test_an_item_depends_on_seed_and_place_alone(size, seed, start, n):
    workload = small(size)
    whole = schedule(workload, seed=seed, n=start + n)
    assert schedule(workload, seed=seed, n=n, start=start) == whole[start:]
    for number in range((start + n) // size):
        assert Counter(p.id for p in whole[number * size : (number + 1) * size]) == Counter(p.id for p in workload.prompts)


def test_passes_and_seeds_differ():
    workload = small(20)
    twice = schedule(workload, seed=1, n=40)
    assert twice[:20] != twice[20:]
    assert twice[:20] != schedule(workload, seed=2, n=20)


# --- replay


def record(prompt_id, scheduled_s, **changes):
    values: dict[str, Any] = {
        "run_id": "r", "cell": "vllm_m_tp1", "concurrency": 2, "repeat": 1, "phase": "measure", "worker": "w", "user": 0,
        "seq": 0, "prompt_id": prompt_id, "scheduled_s": scheduled_s, "sent_s": scheduled_s, "headers_s": None,
        "chunk_s": (1.0, 2.0, 3.0), "chunk_tokens": (4, 5, 6), "first_answer_chunk": 2, "ended_s": 3.0, "prompt_tokens": 9,
        "completion_tokens": 100, "reasoning_tokens": 70, "cached_tokens": None, "token_count_source": "server",
        "finish_reason": "stop", "outcome": "ok", "error": None, "answer": None, "answer_correct": None,
        "request_sha256": "",
    }  # fmt: skip
    return schema.RequestRecord(**(values | changes))


def run_of(path, workload, requests):
    write_manifest(path, Manifest(run_id="r", workload=workload.facts))
    for number, request in enumerate(requests):
        request = replace(request, seq=number)  # each request of a pass has a number of its own
        writer = JsonlWriter(
            folder.level_path(path, request.cell, request.concurrency, request.repeat), f"requests-{number}"
        )
        writer.write(request)
        writer.close()
    return read.read_run(path)


def test_a_finished_run_becomes_a_workload_to_replay(tmp_path):
    workload = load("math:n=4,seed=7")
    a, b, c, d = (p.id for p in workload.prompts)
    requests = [
        record(a, 10.0),
        record(b, 4.0, clock_anchor_unix_s=3.0, reasoning_tokens=None),  # 3 s later on another process's clock
        record(a, 12.5, seq=1, outcome="truncated", reasoning_tokens=100),
        record(c, 9.0, outcome="cut_off"),
        record(d, 9.5, phase="warmup"),
        record(c, 20.0, reasoning_tokens=None, chunk_tokens=None),
        record(d, 1.0, concurrency=4),
    ]
    replay = from_run(run_of(tmp_path / "run", workload, requests))
    got = [(p.id, p.arrival_s, p.thinking_tokens, p.answer_tokens) for p in replay.prompts]
    assert got == [(b, 0.0, 9, 91), (a, 3.0, 70, 30), (f"{a}#2", 5.5, 100, 0), (c, 13.0, None, 100)]
    assert replay.prompts[1].messages == workload.prompts[0].messages
    path = tmp_path / "replay.jsonl"
    path.write_bytes(dump(replay))
    assert load(str(path)).identity == replay.identity


def test_which_pass_is_replayed_can_be_chosen(tmp_path):
    workload = load("math:n=2")
    a, b = (p.id for p in workload.prompts)
    run = run_of(tmp_path / "run", workload, [record(a, 0.0), record(b, 0.0, concurrency=4)])
    assert [p.id for p in from_run(run, concurrency=4).prompts] == [b]
    with pytest.raises(UsageError, match=r"cell other: expected|in cell other, got none; cells: vllm_m_tp1 at \[2, 4\]"):
        from_run(run, cell="other")


def test_a_changed_workload_is_not_replayed(tmp_path):
    spec = write(tmp_path / "w.jsonl", {"prompt": "a"})
    run = run_of(tmp_path / "run", load(spec), [record("p0001", 0.0)])
    write(tmp_path / "w.jsonl", {"prompt": "changed"})
    with pytest.raises(UsageError, match="has changed; bring back"):
        from_run(run)


def test_dumped_lines_hold_only_what_is_known():
    line = msgspec.json.decode(dump(small(1)))
    assert line == {"id": "q0", "messages": [{"role": "user", "content": "What is 0?"}], "answer_format": "none"}
