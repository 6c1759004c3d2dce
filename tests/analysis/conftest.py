"""Whatever `analyze`, `compare`, `check` and `plan` make in a test here must be readable by the types that describe it."""

import msgspec
import pytest

from loadtest.analysis import capacity, compare, objectives, run
from loadtest.metrics import schema


@pytest.fixture(scope="session", autouse=True)
def every_result_decodes():
    """msgspec checks no value where a struct is made, so each result is written and read back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Metrics", checked(run.Metrics, schema.encode, lambda raw: schema.decode(raw, "metrics.json")))
        for module, name in ((compare, "RunComparison"), (objectives, "GateReport"), (capacity, "CapacityOption")):
            kind = getattr(module, name)
            patch.setattr(module, name, checked(kind, msgspec.json.encode, msgspec.json.Decoder(kind).decode))
        yield


def checked(kind, encode, decode):
    def made(**fields):
        found = kind(**fields)
        assert decode(encode(found)) == found
        return found

    return made
