"""What servers do with a `cache_salt`."""

import pytest

from loadtest.servers.salts import salting_of
from tests.support.fake_server import serving

PATH = "/v1/chat/completions"


def told(cached_tokens):
    return {"usage": {"prompt_tokens": 400, "prompt_tokens_details": {"cached_tokens": cached_tokens}}}


@pytest.mark.parametrize(
    ("answer", "salting"),
    [
        (told(0), "kept"),
        (told(16), "kept"),  # a chat template that all prompts begin with
        (told(384), "ignored"),
        (told(None), "unknown"),
        ({"usage": {"prompt_tokens": 400}}, "unknown"),
        ("no JSON", "unknown"),
        ((400, {"error": "unknown field cache_salt"}, {}), "refused"),
        ((500, {"error": "later"}, {}), "unknown"),
    ],
)
def test_a_server_keeps_salts_apart_or_not(answer, salting):
    with serving({PATH: answer}) as server:
        assert salting_of(server.url, "m") == salting
        assert [path for path, _ in server.asked] == [PATH, PATH]


def test_a_server_that_does_not_answer_tells_nothing():
    with serving({}) as server:
        url = server.url
    assert salting_of(url, "m", timeout_s=2.0) == "unknown"
