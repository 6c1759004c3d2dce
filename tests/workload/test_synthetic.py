"""Prompts of exact lengths: what a spec asks for, and how it is fitted to a server's count."""

from types import SimpleNamespace

import pytest

from loadtest.errors import EngineError, UsageError
from loadtest.workload import synthetic
from loadtest.workload.contract import Contract, check_lengths, prompt_tokens_at_most, within
from loadtest.workload.exact import fit_spec
from loadtest.workload.server_count import fit_to_server
from loadtest.workload.workload import load, usual_mode
from tests.support import fake_server

SPEC = "synthetic:isl=100,osl=20,n=4"


def by_words(text):
    """A server that counts each word as one token, and eleven for its template."""
    return 11 + len(text.split())


def by_letters(least):
    """One whose words of `least` letters and more take two tokens."""
    return lambda text: 11 + sum(1 + (len(word) >= least) for word in text.split())


def fitted(spec, count):
    """The spec that `count` leads to, and the requests that it took."""
    made, words = fit_spec(spec, count)
    return SimpleNamespace(spec=made, requests=words.requests)


def contents(spec):
    return [prompt.messages[0]["content"] for prompt in load(spec).prompts]


def test_fitted_prompts_have_the_length_asked_for_by_the_servers_count():
    fit = fitted(SPEC, by_words)
    assert [by_words(text) for text in contents(fit.spec)] == [100] * 4
    assert [p.forced_tokens for p in load(fit.spec).prompts] == [20] * 4
    assert fit.requests == 3


def test_a_workload_is_fixed_by_its_seed():
    short, long = load(SPEC), load(f"{SPEC},n=24")
    assert long.prompts[:4] == short.prompts
    assert load(f"{SPEC},seed=6").identity != short.identity
    assert len(set(contents(f"{SPEC},n=24"))) == 24


def test_no_text_that_is_measured_is_asked_about():
    asked = []
    fit = fitted(SPEC, lambda text: asked.append(text) or by_words(text))
    opening = len(synthetic.OPENING)
    assert not any(text[: opening + 40] == other[: opening + 40] for text in contents(fit.spec) for other in asked)


def test_a_spread_draws_prompts_and_outputs_evenly_about_their_means():
    prompts = load("synthetic:isl=100,osl=20,spread=0.5,n=400").prompts
    for lengths, low, high in (
        ([p.prompt_tokens for p in prompts], 50, 150),
        ([p.forced_tokens for p in prompts], 10, 30),
    ):
        assert (min(lengths), max(lengths)) == (low, high)
        assert sum(lengths) / len(lengths) == pytest.approx((low + high) / 2, rel=0.05)


def test_all_prompts_share_the_prefix_and_no_more():
    texts = [text.split() for text in contents(f"{SPEC},prefix=60")]
    shared = len(synthetic.OPENING.split()) + 60
    assert len({tuple(words[:shared]) for words in texts}) == 1
    assert len({tuple(words[: shared + 8]) for words in texts}) == 4


def test_where_long_words_take_two_tokens_short_ones_are_used():
    fit = fitted(SPEC, by_letters(3))
    assert fit.spec.endswith("words=ijk")
    assert [by_letters(3)(text) for text in contents(fit.spec)] == [100] * 4


def test_only_the_groups_without_a_word_of_two_tokens_are_used():
    fit = fitted(SPEC, lambda text: by_words(text) + text.split().count("and"))
    assert fit.spec.endswith("words=bcdefgh")


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (by_letters(1), "counts a short word as one token, found no such word"),
        (lambda text: by_words(text) - (len(text.split()) > 50 and len(set(text.split())) < 60), "joins words"),
    ],
)
def test_a_server_whose_count_cannot_be_met_is_refused(count, said):
    with pytest.raises(EngineError, match=said):
        fitted(SPEC, count)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("osl=4", "isl: expected a number of tokens, got none"),
        ("isl=9,osl=0", "osl: expected a whole number from 1 to 131072, got '0'"),
        ("isl=9,osl=4,spread=1.5", "spread: expected a number from 0 to 0.99, got '1.5'"),
        ("isl=9,osl=4,prefix=9", "prefix: expected less than the shortest prompt holds"),
        ("isl=9,osl=4,template=9", "beside the 9 tokens of the chat template"),
        ("isl=9,osl=4,perfix=1", "did you mean 'prefix'"),
        ("isl=9,osl=4,words=az", "words: expected letters of abcdefghijk"),
    ],
)
def test_a_wrong_spec_is_refused_by_key(options, said):
    with pytest.raises(UsageError, match=said):
        load(f"synthetic:{options}")


def test_outputs_are_forced_or_refused():
    prompts = load(SPEC).prompts
    assert usual_mode(SPEC) == "equal-work"
    check_lengths(Contract(mode="equal-work"), prompts)
    with pytest.raises(UsageError, match="mode: expected equal-work"):
        check_lengths(Contract(), prompts)
    with pytest.raises(UsageError, match="max_tokens: expected at least the 20"):
        check_lengths(Contract(mode="equal-work", max_tokens=19), prompts)


def test_the_context_holds_exactly_prompt_and_output():
    prompts = load(SPEC).prompts
    assert prompt_tokens_at_most(prompts[0]) == 100
    check_lengths(within(Contract(mode="equal-work"), prompts, 120), prompts)
    with pytest.raises(UsageError, match="max_tokens"):
        check_lengths(within(Contract(mode="equal-work"), prompts, 119), prompts)


def test_a_reply_without_usage_is_one_clear_line():
    with (
        fake_server.serving({"/v1/chat/completions": {"choices": []}}) as server,
        pytest.raises(EngineError, match=r"expected a reply with usage.prompt_tokens.* got HTTP 200"),
    ):
        fit_to_server(SPEC, Contract(), base_url=server.url, model="m", engine="other")
