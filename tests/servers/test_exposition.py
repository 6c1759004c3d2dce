"""The text format of Prometheus: what was written is read back, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.servers.exposition import parse_series


@given(st.dictionaries(st.sampled_from("abcxyz"), st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_parse_reads_back_what_was_written(values):
    text = "\n".join(f'vllm:{name}{{a="b, {{c}} \\" d",e="{name}"}} {value!r} 1700000000' for name, value in values.items())
    read = parse_series(text, {f"vllm:{name}" for name in values})
    assert {name: rows[0][1] for name, rows in read.items()} == {f"vllm:{name}": value for name, value in values.items()}
    assert all(rows[0][0]["e"] in values for rows in read.values())


@pytest.mark.parametrize(
    "line", ["vllm:a NaN", "vllm:a 1 2 3", "vllm:a many", 'vllm:a{l="' + "x" * 5000 + '"} 1', "vllm:b 1"]
)
def test_what_is_no_number_of_ours_is_left_out(line):
    assert parse_series(line, {"vllm:a"}) == {}
