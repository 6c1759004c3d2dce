"""What a record keeps of calls."""

from loadtest.client.record_builder import kept_calls
from loadtest.records.schema import ANSWER_LIMIT_BYTES, TOOL_CALLS_KEPT, ToolCall


def test_a_record_keeps_the_first_calls_and_the_start_of_long_ones():
    calls = [ToolCall(name="n" * 999, arguments="ä" * 5000, first_chunk=i, last_chunk=i, id="x" * 999) for i in range(99)]
    kept = kept_calls(calls)
    assert len(kept) == TOOL_CALLS_KEPT
    assert len(kept[0].arguments.encode()) == ANSWER_LIMIT_BYTES
    assert (len(kept[0].name), len(kept[0].id), kept[3].first_chunk) == (256, 256, 3)
    assert kept_calls([ToolCall(name="", arguments="", first_chunk=0, last_chunk=0)])[0].id is None
