"""Keys come from the environment alone, and reach no file."""

import base64
import html
import json
import os
import re
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


KEY = "sk-0123456789+/=&<'\"ABCDEFxyz"


@pytest.mark.parametrize(
    "echo",
    [
        KEY, json.dumps({"key": KEY}), urllib.parse.quote(KEY), urllib.parse.quote_plus(KEY),
        re.sub("%..", lambda m: m[0].lower(), urllib.parse.quote(KEY)),
        html.escape(KEY), f"cut after some: {KEY[:12]}", f"{KEY[:8]}...",
        f"{KEY[-9:]} at the end of a tail", f"x{KEY}y{KEY}",
        *(base64.b64encode(b"u" * n + KEY.encode()).decode() for n in range(4)),
        base64.urlsafe_b64encode(f"user:{KEY}".encode()).decode(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("variable", ["LOADTEST_API_KEY", "OPENAI_API_KEY", "LOADTEST_EASY_API_KEY"])
@pytest.mark.fault("secrets", "A key escaped, encoded or cut: `[API key]`")
def test_no_spelling_of_a_key_is_left(monkeypatch, variable, echo):
    monkeypatch.setenv(variable, KEY)
    left = credentials.redacted(f"401: {echo}" if not echo.startswith(KEY[-9:]) else echo)
    assert "[API key]" in left
    spellings = (
        KEY,
        json.dumps(KEY)[1:-1],
        urllib.parse.quote(KEY),
        html.escape(KEY),
        base64.b64encode(KEY.encode()).decode(),
    )
    assert not any(spelling[n : n + 8] in left for spelling in spellings for n in range(len(spelling) - 8))


@given(text=st.text())
def test_text_without_a_key_is_left_as_it_is(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOADTEST_API_KEY", "sk-0123456789abcdef")
        assert credentials.redacted(text) == text


@pytest.mark.parametrize(
    "name",
    [
        "--api-key",
        "--admin-api-key",
        "--hf-token",
        "token",
        "Authorization",
        "x_api_key",
        "passwd",
        "pwd",
        "key",
        "credentials",
        "private_key",
        "access_key",
        "aws_secret_access_key",
        "session_token",
        "bearer_token",
    ],
)
def test_names_of_secrets(name):
    assert credentials.first_secret(["--port", f"{name}=hunter2"]) == name


@pytest.mark.parametrize(
    "name", ["--max-num-batched-tokens", "--tokenizer", "max_tokens", "token_ids", "--key-value", "--ssl-keyfile", "monkey"]
)
def test_other_names(name):
    assert credentials.first_secret([name]) is None


@pytest.mark.parametrize(
    "line", ['args = ["--api-key", "hunter2"]', 'args = ["--api-key=hunter2"]', 'base_url = "http://me:hunter2@host"']
)
@pytest.mark.fault("secrets", "A key in a study, URL or extra body: refused, exit 2")
def test_a_study_with_a_secret_is_refused_before_anything_is_written(line):
    with pytest.raises(UsageError) as caught:
        parse.parse_study(CELL + line)
    assert "hunter2" not in str(caught.value)
    assert str(caught.value).startswith("study:6: ")


def test_a_body_with_a_secret_is_refused():
    with pytest.raises(UsageError, match="extra_body: expected no key"):
        Contract(extra_body={"provider": [{"api_key": "hunter2"}]})
    assert Contract(extra_body={"chat_template_kwargs": {"token_budget": 1}}).extra_body


@pytest.mark.parametrize("key", ["abc\ndef", "ключ", "sk 1234", "a\x01b"])
@pytest.mark.fault("input", "A key that no header can carry: not repeated")
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


SECRET = "Bearer team-0123456789"


@pytest.fixture
def team(monkeypatch):
    monkeypatch.setenv("TEAM_KEY", SECRET)
    monkeypatch.setattr(credentials, "_seen", set())


def test_headers_take_their_values_from_the_environment_while_they_are_asked_for(team):
    assert credentials.extra_headers() == {}
    with credentials.with_headers({"X-Team": "TEAM_KEY"}):
        assert credentials.extra_headers() == {"X-Team": SECRET}
        assert credentials.header_variables() == {"X-Team": "TEAM_KEY"}
    assert credentials.extra_headers() == {}


@pytest.mark.parametrize(
    "spell", [str, lambda text: base64.b64encode(text.encode()).decode(), urllib.parse.quote, json.dumps]
)
@pytest.mark.parametrize("part", [SECRET, SECRET.split()[1], SECRET.split()[1][:10]])
def test_the_value_of_a_header_is_redacted_in_every_spelling_also_afterwards(team, spell, part):
    with credentials.with_headers({"X-Team": "TEAM_KEY"}):
        credentials.extra_headers()
    said = credentials.redacted(f"you sent {spell(part)} to us")
    assert "0123" not in said
    assert spell(part)[:-4] not in said


@pytest.mark.parametrize(
    "text",
    ["X-Team", "X-Team=", "X-Team=Bearer abc", "Host=TEAM_KEY", "content-length=TEAM_KEY", "X Team=TEAM_KEY", "=A", ""],
)
def test_what_is_no_header_is_refused_without_its_value(text):
    with pytest.raises(UsageError, match="--header") as caught:
        credentials.read_header(text)
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize("value", ["", "a\r\nX-Other: b", "schlüssel"])
def test_a_value_that_cannot_stand_in_a_header_is_refused_without_it(monkeypatch, value):
    monkeypatch.setenv("TEAM_KEY", value)
    with (
        pytest.raises(UsageError, match="expected its value in the variable TEAM_KEY") as caught,
        credentials.with_headers({"X-Team": "TEAM_KEY"}),
    ):
        pass
    assert "Other" not in str(caught.value)
    assert credentials.HEADERS_VARIABLE not in os.environ
