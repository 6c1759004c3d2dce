"""Thinking and answer: closing tag alone, split over chunks, missing, and kept by the server in a field."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client.thinking import Split, opens_in_prompt, split_fields, split_inline


@pytest.mark.parametrize(
    ("contents", "opened", "expected"),
    [
        (["why", "</think>", "\n\n", "42"], True, Split(3, "42", "inline", True)),
        (["why</th", "ink>42"], True, Split(1, "42", "inline", True)),
        (["why", "<", "/think", ">", "42"], False, Split(4, "42", "inline", True)),
        (["<think>\n", "why", "</think>", "42"], False, Split(3, "42", "inline", True)),
        (["<think>", "why"], False, Split(None, "", "inline", False)),
        (["why", " so"], True, Split(None, "", "inline", False)),
        (["why", "</think>", "\n"], True, Split(None, "", "inline", True)),
        ([" ", "4", "2"], False, Split(1, "42", None, None)),
        (["a</think>b</think>c"], True, Split(0, "b</think>c", "inline", True)),
        ([], True, Split(None, "", None, None)),
    ],
)
def test_split_inline(contents, opened, expected):
    assert split_inline(contents, opened=opened) == expected


def test_a_server_that_splits_is_believed():
    assert split_fields(["", "", "\n", "4", "2"], "reasoning") == Split(3, "42", "reasoning", None)
    assert split_fields(["", ""], "reasoning_content") == Split(None, "", "reasoning_content", None)


@given(st.text(alphabet="abc <>/\n", max_size=30), st.text(alphabet="xyz ", min_size=1, max_size=10), st.data())
def test_the_split_does_not_depend_on_how_the_text_was_cut(thought, answer, data):
    whole = f"{thought}</think>{answer}"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    edges = [0, *cuts, len(whole)]
    contents = [whole[a:b] for a, b in pairwise(edges)]
    split = split_inline(contents, opened=True)
    assert split.answer == whole.split("</think>", 1)[1].strip()
    if split.first_answer_chunk is not None:
        assert split.answer[0] in contents[split.first_answer_chunk]
        assert "".join(contents[: split.first_answer_chunk]).partition("</think>")[2].strip() == ""


@pytest.mark.parametrize("name", ["QwQ-32B", "qwq-32b-awq", "deepseek-r1-distill", "Qwen3-30B-Thinking"])
def test_names_of_models_that_think(name):
    assert opens_in_prompt(name)


@pytest.mark.parametrize("name", ["Qwen2.5-7B-Instruct", "llama-3.1-8b", "known"])
def test_names_of_models_that_do_not(name):
    assert not opens_in_prompt(name)
