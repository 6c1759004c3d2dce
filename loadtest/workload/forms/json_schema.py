"""JSON Schemas (draft 2020-12): is one sound, and is a value valid by it? Nothing is ever fetched: a `$ref` stays inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from loadtest.errors import UsageError

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

_MESSAGE_CHARS = 200


def check_schema(schema: object, key: str) -> None:
    """Raise `UsageError` under this key unless it is a schema that values can be held against.

    >>> check_schema({"type": "objekt"}, "tools")
    Traceback (most recent call last):
    ...
    loadtest.errors.UsageError: tools: expected a JSON schema (draft 2020-12), got one with: 'objekt' is not valid ...
    """
    if not isinstance(schema, Mapping):
        raise UsageError(f"{key}: expected a JSON schema as an object, got {str(schema)[:80]!r}")
    problem = _problem(_text(schema))
    if problem is not None:
        raise UsageError(f"{key}: expected a JSON schema (draft 2020-12), got one with: {problem[:_MESSAGE_CHARS]}")


def is_valid(value: object, schema: Mapping[str, Any]) -> bool:
    """Is a JSON value valid by a sound schema? A value that is nested too deep is not. Takes about 10 us for each number
    or text in it.

    >>> is_valid({"n": 4}, {"properties": {"n": {"type": "integer"}}}), is_valid({"n": "4"}, {"required": ["m"]})
    (True, False)
    """
    try:
        return bool(_validator(_text(schema)).is_valid(value))
    except RecursionError:
        return False


def least_items(schema: Mapping[str, Any]) -> int:
    """How many values any JSON by this schema has at least, as far as lists that must be there tell: each takes a token.

    >>> least_items({"properties": {"a": {"type": "array", "minItems": 9}, "b": {"minItems": 5}}, "required": ["a"]})
    9
    """
    own = int(schema.get("minItems", 0)) if schema.get("type") == "array" else 0
    items = schema.get("items")
    inner = least_items(items) if own and isinstance(items, Mapping) else 0
    properties, required = schema.get("properties", {}), schema.get("required", ())
    parts = (properties[key] for key in required if isinstance(properties.get(key), Mapping))
    return own * max(1, inner) + sum(map(least_items, parts))


def decoded(text: str) -> tuple[bool, object]:
    """Whether a text is JSON as it stands, and its value.

    >>> decoded(' {"n": 4}'), decoded("Sure: {}")
    ((True, {'n': 4}), (False, None))
    """
    try:
        return True, msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False, None


def same_value(a: object, b: object) -> bool:
    """Are two JSON values the same? Numbers by value, but true is not 1.

    >>> same_value({"a": [1, 2.0]}, {"a": [1.0, 2]}), same_value(1, True)
    (True, False)
    """
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_value(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_value, a, b))
    return a is b if isinstance(a, bool) or isinstance(b, bool) else a == b


def _text(schema: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(schema, order="sorted")


@lru_cache(maxsize=1024)
def _validator(text: bytes) -> Draft202012Validator:
    from jsonschema import Draft202012Validator
    from referencing import Registry

    return Draft202012Validator(msgspec.json.decode(text), registry=Registry())


@lru_cache(maxsize=1024)
def _problem(text: bytes) -> str | None:
    """What is wrong with a schema; None where it is sound."""
    from jsonschema import Draft202012Validator, SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    schema = msgspec.json.decode(text)
    resolver = Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
    try:
        Draft202012Validator.check_schema(schema)
        for reference in _references(schema):
            if not reference.startswith("#"):
                return f"$ref {reference!r}, which is not in it"
            resolver.lookup(reference)
        _validator(text).is_valid(None)
    except SchemaError as error:
        return str(error.message)
    except Unresolvable as error:
        return f"$ref {error.ref!r}, which is not in it"
    except RecursionError:
        return "a $ref that leads back to itself, or too many levels"
    return None


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from (one for key, one in schema.items() if key in ("$ref", "$dynamicRef") and isinstance(one, str))
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _references(inner)
