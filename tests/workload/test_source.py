"""Prompts of one's own: tables, data sets, keys of one's choice, conversations with all their turns."""

import json

import pytest

from loadtest.errors import UsageError
from loadtest.workload.contract import Contract
from loadtest.workload.script import Script
from loadtest.workload.source import keyed
from loadtest.workload.workload import dump, load

ROWS = [("What is 2+2? Use \\boxed{}.", "4"), ('Say "hi",\nplease.', "")]
DIALOGUE = [
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello"},
    {"from": "human", "value": "Why?"},
    {"from": "gpt", "value": "So."},
    {"from": "human", "value": "And?"},
]


def asked(spec):
    return [(prompt.messages[0]["content"], prompt.answer) for prompt in load(spec).prompts]


@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t")])
def test_a_table_with_columns_of_any_name(tmp_path, suffix, mark):
    path = tmp_path / f"tasks.{suffix}"
    rows = [("question", "answer"), *((f'"{q.replace(chr(34), chr(34) * 2)}"', a) for q, a in ROWS)]
    path.write_text("".join(f"{mark.join(row)}\n" for row in rows))
    assert asked(keyed(str(path), "question", "answer")) == [(ROWS[0][0], "4"), (ROWS[1][0], None)]
    assert len(asked(f"{path}:prompt-key=question,n=1")) == 1


def test_a_key_that_no_column_has_is_refused_also_for_answers(tmp_path):
    path = tmp_path / "tasks.csv"
    path.write_text("question,answer\nWhy?,\n")
    assert asked(keyed(str(path), "question", "answer")) == [("Why?", None)]
    with pytest.raises(UsageError, match=r"tasks.csv:2: anser: expected one of the keys 'question', 'answer'; did you mean"):
        load(keyed(str(path), "question", "anser"))


def test_a_table_with_our_own_names_needs_no_keys(tmp_path):
    path = tmp_path / "tasks.csv"
    path.write_text("id,prompt,answer\na,Why?,so\n")
    (prompt,) = load(str(path)).prompts
    assert (prompt.id, prompt.answer) == ("a", "so")


def test_a_parquet_file(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    from pyarrow import parquet

    path = tmp_path / "tasks.parquet"
    parquet.write_table(pyarrow.table({"question": [q for q, _ in ROWS], "answer": ["4", None]}), path)
    assert asked(f"{path}:prompt-key=question,answer-key=answer")[0] == (ROWS[0][0], "4")
    path.write_bytes(b"no table")
    with pytest.raises(UsageError, match=r"tasks.parquet: expected a Parquet file, got something else"):
        load(str(path))


def test_a_data_set_of_the_hub_by_id(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="datasets is an extra")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "test.csv").write_text("question,answer\nWhy?,so\nHow?,thus\n")
    spec = f"hf:{folder}:split=test,prompt-key=question,answer-key=answer"
    assert asked(spec) == [("Why?", "so"), ("How?", "thus")]
    with pytest.raises(UsageError, match=r"^hf:nobody/nothing: expected a data set with a split 'test'[^\n]*$"):
        load("hf:nobody/nothing")


def test_without_the_package_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"hf:a/b: needs the datasets package; pip install datasets"):
        load("hf:a/b")
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(UsageError, match=r"needs the pyarrow package; pip install pyarrow"):
        load(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("name", "text", "options", "said"),
    [
        (
            "a.csv",
            "question\nWhy?\n",
            "prompt-key=qestion",
            "a.csv:2: qestion: expected one of the keys 'question'; did you",
        ),
        ("a.csv", "question\nWhy?,so\n", "", "a.csv:2: expected 1 cells, as the first line has, got 2; quote commas"),
        ("a.csv", "question\nWhy?\n", "", r"a.csv:2: expected one of the keys .*; or name one by --prompt-key"),
        ("a.jsonl", '{"q": "a"}', "turns=none", "turns: expected first or all, got 'none'"),
        ("a.jsonl", '{"q": "a"}', "promt-key=q", "did you mean 'prompt-key'"),
        ("a.jsonl", '{"q": "a"}', "prompt-key=q,n=0", "n: expected a whole number from 1 up, got '0'"),
        ("a.jsonl", '{"q": 5}', "prompt-key=q", "a.jsonl:1: prompt: expected a text that is not empty, got 5"),
    ],
)
def test_a_wrong_row_or_option_is_one_clear_line(tmp_path, name, text, options, said):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        load(f"{path}:{options}" if options else str(path))


@pytest.mark.parametrize("kind", ["image_url", "input_audio"])
def test_images_and_sound_are_refused_by_name(tmp_path, kind):
    path = tmp_path / "a.jsonl"
    parts = [{"type": "text", "text": "What is this?"}, {"type": kind, kind: {"url": "data:..."}}]
    path.write_text(json.dumps({"messages": [{"role": "user", "content": parts}]}))
    with pytest.raises(UsageError, match=rf"a.jsonl:1: messages: expected text alone, got a part of type {kind}"):
        load(str(path))


def test_all_turns_of_a_conversation_are_kept(tmp_path):
    path = tmp_path / "chats.json"
    path.write_text(json.dumps([{"id": "a", "conversations": DIALOGUE}, {"id": "b", "conversations": DIALOGUE[:2]}]))
    workload = load(f"{path}:turns=all")
    assert [prompt.following for prompt in workload.prompts] == [("Why?", "And?"), ()]
    assert [prompt.following for prompt in load(str(path)).prompts] == [(), ()]
    again = tmp_path / "ours.jsonl"
    again.write_bytes(dump(workload))
    assert load(str(again)).identity == workload.identity
    keyed_path = tmp_path / "keyed.jsonl"
    keyed_path.write_text(json.dumps({"dialogue": DIALOGUE}))
    assert load(f"{keyed_path}:prompt-key=dialogue,turns=all").prompts[0].turns == 3


def test_tasks_are_counted_by_the_turns_of_their_conversations(tmp_path):
    path = tmp_path / "chats.json"
    path.write_text(json.dumps([{"id": "a", "conversations": DIALOGUE}, {"id": "b", "conversations": DIALOGUE[:2]}]))
    script = Script(load(f"{path}:turns=all"), Contract(), model="m", engine="other", seed=0)
    assert script.most_turns == 3
    assert script.turns(0) + script.turns(1) == 4
    assert [script.tasks(n) for n in (4, 5, 8)] == [2, 3, 4]
