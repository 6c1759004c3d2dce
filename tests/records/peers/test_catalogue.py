"""Files that the tools themselves wrote, against a server of known times: what each tells is what the server did."""

import pytest

from loadtest.records.peers import catalogue
from tests.support.documents import ROOT

DATA = ROOT / "tests/data/peers"
FIRST_S, GAP_S, TOKENS, REQUESTS, USERS = 0.2, 0.02, 40, 24, 4
BUSY_S = 0.1  # what a tool on a busy machine may add to a first token


def tell(name):
    return catalogue.read_result(DATA / name)


FILES = sorted(path.name for path in DATA.iterdir() if path.name != "README.md")


def test_every_reader_has_a_file_of_its_tool():
    assert {tell(name).reader.tool for name in FILES} == {reader.tool for reader in catalogue.READERS}


@pytest.mark.parametrize("name", FILES)
def test_what_a_tool_tells_is_what_the_server_did(name):
    told = tell(name)
    (one,) = told.result.passes
    assert (one.concurrency, one.arrivals, len(one.requests)) == (USERS, None, REQUESTS)
    assert one.figures
    for request in one.requests:
        assert (request.error, request.output_tokens) == (None, TOKENS)
        assert request.first_s == pytest.approx(FIRST_S + BUSY_S / 2, abs=BUSY_S / 2)
        if request.gaps_s is not None:
            assert sum(request.gaps_s) == pytest.approx(GAP_S * (TOKENS - 1), abs=BUSY_S)
        if request.end_s is not None:
            assert request.end_s == pytest.approx(FIRST_S + GAP_S * (TOKENS - 1) + BUSY_S / 2, abs=BUSY_S)


def test_no_path_of_a_machine_is_in_the_files():
    for name in FILES:
        assert not any(word in (DATA / name).read_text() for word in ("/tmp/", "/home/", "/root", "/work"))


def test_what_only_some_tell():
    vllm, sglang = tell("vllm-bench-0.32.0.json"), tell("sglang-bench-0.5.15.post1.jsonl")
    assert (vllm.result.model, vllm.result.version, vllm.result.passes[0].date) == ("known", None, "20261126-175053")
    assert (sglang.result.model, sglang.result.engine) == (None, None)
    assert all(one.start_s is not None for one in vllm.result.passes[0].requests)
    assert all(one.start_s is None for one in sglang.result.passes[0].requests)
