"""The body of a request for each endpoint."""

import pytest

from loadtest.errors import UsageError
from loadtest.workload.apis import check_api
from loadtest.workload.contract import Contract
from loadtest.workload.prompts import Prompt

PROMPT = Prompt(
    id="a", messages=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}), answer_tokens=9
)


def body(api, **contract):
    return Contract(**contract).body(PROMPT, "m", api=api)


def test_completions_get_one_text():
    made = body("completions", mode="equal-work")
    assert made["prompt"] == "Be brief.\n\nWhy?"
    assert "messages" not in made
    assert (made["max_tokens"], made["min_tokens"], made["ignore_eos"]) == (9, 9, True)
    assert made["stream_options"]["include_usage"] is True


def test_responses_have_a_limit_of_their_own_and_are_not_kept():
    made = body("responses", mode="equal-work", extra_body={"chat_template_kwargs": {"a": 1}})
    assert [message["role"] for message in made["input"]] == ["system", "user"]
    assert (made["max_output_tokens"], made["ignore_eos"], made["store"]) == (9, True, False)
    assert not {"messages", "max_tokens", "min_tokens", "stream_options"} & set(made)
    assert made["chat_template_kwargs"] == {"a": 1}


def test_messages_get_what_anthropic_knows():
    made = body("messages")
    assert made["system"] == "Be brief."
    assert made["messages"] == [{"role": "user", "content": "Why?"}]
    assert set(made) == {"model", "stream", "max_tokens", "temperature", "top_p", "top_k", "messages", "system"}


def test_messages_cannot_be_forced():
    check_api("responses", "equal-work", ())
    with pytest.raises(UsageError, match="api: expected another than messages with forced outputs"):
        check_api("messages", "equal-work", ())


def test_what_a_request_of_its_own_says_is_not_an_extra():
    with pytest.raises(UsageError, match="extra_body: expected a table that leaves messages, prompt, input"):
        Contract(extra_body={"prompt": "x"})


@pytest.mark.parametrize(
    ("values", "warned"),
    [({}, 0), ({"temperature": 0}, 1), ({"top_k": -1}, 1), ({"top_k": 64, "temperature": 0.0}, 2), ({"top_k": 20}, 0)],
)
def test_sampling_that_is_not_recommended_is_a_warning(values, warned):
    assert len(Contract(**values).warnings) == warned
