"""Public traces: each format by a small excerpt of our own making, sharing as its hashes say, time scaled."""

import pytest

from loadtest.errors import UsageError
from loadtest.workload.exact import fit_spec
from loadtest.workload.source import keyed
from loadtest.workload.workload import load, usual_mode

MOONCAKE = """\
{"timestamp": 0, "input_length": 1100, "output_length": 50, "hash_ids": [0, 1, 2]}
{"timestamp": 3000, "input_length": 1200, "output_length": 60, "hash_ids": [0, 1, 7]}
{"timestamp": 9000, "input_length": 600, "output_length": 5, "hash_ids": [8, 9]}
"""
BAILIAN = """\
{"chat_id": 159, "timestamp": 61.5, "input_length": 40, "output_length": 7, "turn": 1, "hash_ids": [10, 11, 12]}
{"chat_id": 160, "timestamp": 67.5, "input_length": 50, "output_length": 9, "turn": 2, "hash_ids": [10, 11, 13, 14]}
"""
AZURE_2023 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9000000,374,44
2023-11-16 18:17:05.4000000,396,109
"""
AZURE_2024 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.500000+00:00,2162,5
2024-05-10 00:00:02.500000+00:00,2399,6
"""
BURST_GPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
6,ChatGPT,300,0,300,Conversation log
45,GPT-4,1087,230,1317,API log
"""
TRACES = {
    "mooncake.jsonl": (MOONCAKE, [0.0, 3.0, 9.0], [(1100, 50), (1200, 60), (600, 5)]),
    "bailian.jsonl": (BAILIAN, [0.0, 6.0], [(40, 7), (50, 9)]),
    "azure-2023.csv": (AZURE_2023, [0.0, 1.5], [(374, 44), (396, 109)]),
    "azure-2024.csv": (AZURE_2024, [0.0, 2.0], [(2162, 5), (2399, 6)]),
    "burst-gpt.csv": (BURST_GPT, [0.0, 40.0], [(472, 18), (1087, 230)]),
}


def by_words(text):
    """A server that counts each word as one token, and eleven for its template."""
    return 11 + len(text.split())


@pytest.fixture
def spec(tmp_path):
    def written(name):
        (tmp_path / name).write_text(TRACES[name][0])
        return f"trace:{tmp_path / name}"

    return written


@pytest.mark.parametrize("name", TRACES)
def test_arrivals_and_lengths_are_those_of_the_trace_by_the_servers_count(name, spec):
    made, fitted = fit_spec(spec(name), by_words)
    workload = load(made)
    _, arrivals_s, lengths = TRACES[name]
    assert workload.arrivals_s == pytest.approx(arrivals_s)
    assert [(by_words(p.messages[0]["content"]), p.forced_tokens) for p in workload.prompts] == lengths
    assert [p.prompt_tokens for p in workload.prompts] == [prompt for prompt, _ in lengths]
    assert (usual_mode(made), fitted.requests) == ("equal-work", 3)


@pytest.mark.parametrize(("name", "tokens"), [("mooncake.jsonl", 2 * 512), ("bailian.jsonl", 2 * 16)])
def test_prompts_share_the_blocks_that_their_hashes_share(name, tokens, spec):
    first, second = (p.messages[0]["content"].split() for p in load(spec(name)).prompts[:2])
    shared = next(n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    opening = len(["Go", "on", "with", "these", "words:"])
    assert opening + tokens <= shared <= opening + tokens + 4  # a few words may be alike by chance


def test_what_has_no_hashes_shares_nothing(spec):
    first, second = (p.messages[0]["content"].split()[5:] for p in load(spec("azure-2023.csv")).prompts)
    assert first[:8] != second[:8]


def test_time_is_scaled_and_long_requests_are_left_out(spec):
    name = spec("mooncake.jsonl")
    assert load(keyed(name, None, None, 4)).arrivals_s == (0.0, 0.75, 2.25)
    assert [p.prompt_tokens for p in load(f"{name}:most-tokens=1150,n=2").prompts] == [1100, 600]


def test_a_prompt_that_the_template_alone_exceeds_gets_one_word(tmp_path):
    path = tmp_path / "short.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00+00:00,3,5\n")
    made, _ = fit_spec(f"trace:{path}", by_words)
    assert [p.prompt_tokens for p in load(made).prompts] == [17]  # eleven, five of the opening, one


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("", "", "got an empty file"),
        ("a,b\n1,2\n", "", "expected a trace of Mooncake, Bailian, Azure .* got a, b"),
        ('{"timestamp": 5}\n', "", ":1: expected timestamp, input_length, output_length"),
        (AZURE_2023 + "yesterday,5,5\n", "", ":4: expected TIMESTAMP, ContextTokens, GeneratedTokens, got"),
        (AZURE_2023 + "2023-11-16 18:17:06,5\n", "", ":4: expected TIMESTAMP"),
        (AZURE_2023, "speedup=4", "did you mean 'speed-up'"),
        (AZURE_2023, "speed-up=0", "speed-up: expected a number from 0.001 to 1e\\+06, got '0'"),
        (AZURE_2023, "most-tokens=9", "expected requests with a prompt and an output, got none"),
    ],
)
def test_a_wrong_trace_is_one_clear_line(tmp_path, text, options, said):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        load(f"trace:{path}:{options}" if options else f"trace:{path}")


def test_a_trace_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="expected the file of a trace, found none"):
        load("trace:nowhere.csv:n=5")
