"""The simulated vLLM against a real one: the recorded requests of vLLM 0.19 on an RTX 4090, replayed."""

import numpy as np
import pytest

from tests.simulator import real_trace

pytestmark = pytest.mark.skipif(not real_trace.TRACE.is_file(), reason="the recorded requests are not beside this checkout")


@pytest.fixture(scope="module")
def both():
    rows = real_trace.recorded()
    return real_trace.real(rows), real_trace.replayed(rows)


def of(served, key):
    return np.array([getattr(one, key) for one in served])


def test_requests_queue_as_long_as_they_did(both):
    real, simulated = (of(one, "queue_s") for one in both)
    assert np.mean(simulated) == pytest.approx(np.mean(real), rel=0.05)
    assert np.corrcoef(real, simulated)[0, 1] > 0.98
    assert np.median(np.abs(simulated - real)) < 8


def test_the_first_token_comes_when_it_came(both):
    real, simulated = (of(one, "ttft_s") for one in both)
    assert np.median(simulated) == pytest.approx(np.median(real), rel=0.12)


def test_a_token_takes_as_long_as_it_took(both):
    real, simulated = (of(one, "tpot_s") for one in both)
    assert np.median(simulated) == pytest.approx(np.median(real), rel=0.12)
    assert np.quantile(simulated, 0.9) == pytest.approx(np.quantile(real, 0.9), rel=0.3)
