"""The targets of `make fuzz`, with right inputs and damaged ones: enough to see that each can run, and fail."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.client import http1
from tests.fuzz import targets


@pytest.mark.parametrize("name", targets.TARGETS)
def test_whole_inputs_and_damaged_ones_keep_the_promises(name):
    dice = random.Random(name)
    for seed in targets.seeds(name):
        targets.TARGETS[name](seed)
        for _ in range(40):
            damaged = bytearray(seed)
            for _ in range(dice.randrange(1, 6)):
                at = dice.randrange(len(damaged))
                damaged[at : at + dice.randrange(3)] = dice.randbytes(dice.randrange(3)) or damaged[:at][-9:]
            targets.TARGETS[name](bytes(damaged))


@settings(max_examples=50)
@given(st.sampled_from(sorted(targets.TARGETS)), st.binary(max_size=200))
def test_any_bytes_keep_the_promises(name, data):
    targets.TARGETS[name](data)


def test_a_broken_promise_is_seen(monkeypatch):
    """A parser that loses what was split over two reads."""
    monkeypatch.setattr(http1.Response, "feed", lambda self, data: data[:3])
    with pytest.raises(AssertionError):
        targets.http(targets.seeds("http")[0])
