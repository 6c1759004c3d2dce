"""What servers do with a `cache_salt`."""

import pytest

from loadtest.servers.salts import salting_of
from tests.support.fake_server import serving

PATH = "/v1/chat/completions"


def told(cached_tokens):
    return {"usage": {"prompt_tokens": 400, "prompt_tokens_details": {"cached_tokens": cached_tokens}}}


@pytest.mark.parametrize(
    ("answer", "salting", "asked"),
    [
        (told(0), "kept", 2),
        (told(16), "kept", 2),  # a chat template that all prompts begin with
        (told(384), "ignored", 2),
        (told(None), "unknown", 3),
        ({"usage": {"prompt_tokens": 400}}, "unknown", 3),
        ("no JSON", "unknown", 3),
        ((400, {"error": "unknown field cache_salt"}, {}), "refused", 1),
        ((500, {"error": "later"}, {}), "unknown", 3),
    ],
)
def test_a_server_keeps_salts_apart_or_not(answer, salting, asked):
    with serving({PATH: answer}) as server:
        assert salting_of(server.url, "m") == salting
        assert [path for path, _ in server.asked] == [PATH] * asked


class TakesTurns(dict):
    """Answers that follow each other, each once."""

    def __init__(self, *bodies):
        self.bodies = iter(bodies)

    def get(self, path, default=None):
        return (200, next(self.bodies), {})


def test_a_server_that_tells_only_what_it_found_is_asked_for_what_it_must_find():
    nothing = {"usage": {"prompt_tokens": 400}}
    with serving({}) as server:
        server.answers = TakesTurns(nothing, nothing, told(384))
        assert salting_of(server.url, "m") == "kept"


def test_a_server_that_does_not_answer_tells_nothing():
    with serving({}) as server:
        url = server.url
    assert salting_of(url, "m", timeout_s=2.0) == "unknown"
