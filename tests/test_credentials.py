"""Keys come from the environment alone, and reach no file."""

import pytest

from loadtest import credentials
from loadtest.errors import UsageError
from loadtest.study import parse
from loadtest.workload.contract import Contract

CELL = """name = "x"
workload = "math"
[[cells]]
engine = "vllm"
model = "qwq-32b"
"""


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, None), ({"OPENAI_API_KEY": "two"}, "two"), ({"OPENAI_API_KEY": "two", "LOADTEST_API_KEY": "one"}, "one"),
     ({"LOADTEST_API_KEY": "", "OPENAI_API_KEY": "two"}, "two")],
)  # fmt: skip
def test_the_key_comes_from_the_environment(monkeypatch, variables, expected):
    for name in credentials.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert credentials.api_key() == expected


@pytest.mark.parametrize("name", ["--api-key", "--admin-api-key", "--hf-token", "token", "Authorization", "x_api_key"])
def test_names_of_secrets(name):
    assert credentials.first_secret(["--port", f"{name}=hunter2"]) == name


@pytest.mark.parametrize("name", ["--max-num-batched-tokens", "--tokenizer", "max_tokens", "token_ids", "--key-value"])
def test_other_names(name):
    assert credentials.first_secret([name]) is None


@pytest.mark.parametrize(
    "line", ['args = ["--api-key", "hunter2"]', 'args = ["--api-key=hunter2"]', 'base_url = "http://me:hunter2@host"']
)
def test_a_study_with_a_secret_is_refused_before_anything_is_written(line):
    with pytest.raises(UsageError) as caught:
        parse.parse(CELL + line)
    assert "hunter2" not in str(caught.value)
    assert str(caught.value).startswith("study:6: ")


def test_a_body_with_a_secret_is_refused():
    with pytest.raises(UsageError, match="extra_body: expected no key"):
        Contract(extra_body={"provider": [{"api_key": "hunter2"}]})
    assert Contract(extra_body={"chat_template_kwargs": {"token_budget": 1}}).extra_body


@pytest.mark.parametrize("key", ["abc\ndef", "ключ", "sk 1234", "a\x01b"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_repeated(monkeypatch, key):
    monkeypatch.setenv("LOADTEST_API_KEY", key)
    with pytest.raises(UsageError, match="LOADTEST_API_KEY: expected a key of printable ASCII") as caught:
        credentials.api_key()
    assert key not in str(caught.value)


def test_white_space_around_a_key_is_not_part_of_it(monkeypatch):
    monkeypatch.setenv("LOADTEST_API_KEY", " sk-0123456789\n")
    assert credentials.api_key() == "sk-0123456789"
    assert credentials.redacted('"sk-0123456789"') == '"[API key]"'


def test_a_placeholder_is_no_key_to_take_out(monkeypatch):
    monkeypatch.setenv("LOADTEST_API_KEY", "EMPTY")
    assert credentials.redacted("an EMPTY answer") == "an EMPTY answer"
