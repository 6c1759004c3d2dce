"""JSON Schemas at the border: what is refused, and what values they hold against."""

import pytest

from loadtest.errors import UsageError
from loadtest.workload.forms.json_schema import check_schema, decoded, is_valid, same_value


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ([], "an object"),
        ({"type": "objekt"}, "'objekt' is not valid"),
        ({"minItems": -1}, "-1 is less than"),
        ({"$ref": "https://example.org/schema.json"}, "which is not in it"),
        ({"$ref": "#/$defs/absent"}, "which is not in it"),
        ({"$ref": "#"}, "leads back to itself"),
    ],
)
@pytest.mark.fault("input", "A wrong JSON schema, or one that refers elsewhere: refused in one line, nothing is fetched")
def test_a_wrong_schema_is_refused_in_one_line(schema, said):
    with pytest.raises(UsageError, match=r"^tools: add: ") as caught:
        check_schema(schema, "tools: add")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_references_inside_a_schema_are_followed():
    schema = {
        "$defs": {"n": {"type": "integer"}},
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/n"}, "next": {"$ref": "#"}},
    }
    check_schema(schema, "x")
    assert is_valid({"a": 1, "next": {"a": 2}}, schema)
    assert not is_valid({"a": 1, "next": {"a": "2"}}, schema)


def test_a_value_that_is_nested_too_deep_is_not_valid():
    check_schema(schema := {"items": {"$ref": "#"}}, "x")
    value = []
    for _ in range(50_000):
        value = [value]
    assert not is_valid(value, schema)
    while value:  # free it level by level, not by recursion
        value = value[0]


@pytest.mark.parametrize("text", ["", "{", '{"a": 1} ok', "```json\n{}\n```", "[" * 100_000, '{"a": NaN}'])
def test_what_is_not_json_as_a_whole(text):
    assert decoded(text) == (False, None)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [(1, 1.0, True), (1, True, False), ([1, {"a": None}], [1.0, {"a": None}], True), ({"a": 1}, {"a": 1, "b": 1}, False),
     ([1, 2], [2, 1], False), ("1", 1, False), (None, False, False), (None, None, True), ([0], [False], False)],
)  # fmt: skip
def test_values_are_the_same_by_what_they_mean(a, b, same):
    assert same_value(a, b) is same_value(b, a) is same
