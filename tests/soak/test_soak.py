"""A short soak: every kind of misbehaviour once beside honest streams, and that a fault is seen."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.soak import __main__ as soak
from tests.soak.hostile_server import KINDS


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soak")
    shape = {"streams": 4, "tokens": 20, "gap": 0.002, "pin": False}
    quick = [kind for kind in KINDS if kind not in ("silent", "stalled", "text without end", "comments without end")]
    calm = soak.soak(folder / "calm", "--requests", "8", every=0, **shape)
    return calm, soak.soak(folder / "rough", "--requests", str(3 * len(quick)), every=3, only=quick, **shape)


@pytest.mark.fault("servers", "A third of the replies broken: the others' figures hold")
def test_each_misbehaviour_is_recorded_as_what_it_was_and_honest_requests_end_well(runs):
    calm, rough = runs
    assert [
        one for one in soak.faults(calm, rough) if not one.startswith(("memory", "TTFT", "end to end", "tokens/s"))
    ] == []
    assert len([kind for kind in rough.outcomes if kind in KINDS]) >= len(KINDS) - 5
    assert rough.outcomes["honest"]["ok"] >= 40


def test_a_fault_is_seen(runs):
    calm, rough = runs
    wrong = replace(
        rough, outcomes={"honest": Counter(ok=1, stalled=1), "reset": Counter(ok=1)}, lost=1, ttft_ms=[5.0], exit_code=2,
        memory=[(at_s, 100.0 * at_s) for at_s in rough.ends],
    )  # fmt: skip
    found = " ".join(soak.faults(calm, wrong))
    for words in ("every honest request", "reset: expected", "not on disk", "exit code 2", "TTFT", "memory: grows by"):
        assert words in found
