"""What a simulated model writes where an output must have a form: a call of a tool, or JSON by a schema.

The values are filler drawn from the prompt and the seed. They are valid by a schema of plain kinds (types, enums, bounds,
lengths, local references), and right by chance alone. A share of the outputs can be made invalid: their JSON never closes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.simulator.core.cache import TOKEN_CHARS

_DEEPEST = 8
_MOST_ITEMS = 10_000
_WORDS = ("one", "two", "red", "blue", "north", "south")


class _Draw:
    """Numbers by a hash: the same for the same key, on any machine."""

    def __init__(self, key: str) -> None:
        self._key, self._n = key, 0

    def below(self, n: int) -> int:
        self._n += 1
        digest = hashlib.sha256(f"form/{self._n}/{self._key}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:16], "big") % n

    def share(self) -> float:
        return self.below(2**53) / 2**53

    def one_of(self, values: Sequence[Any]) -> Any:
        return values[self.below(len(values))]


@dataclass(frozen=True, slots=True)
class Formed:
    """An output of a form: the name of the tool that it calls (None: it is the answer), and its JSON by token."""

    tool: str | None
    pieces: tuple[str, ...]
    named: bool = False  # the request named the tool

    def words(self, n: int) -> tuple[str, ...]:
        """The text of its first `n` tokens; spaces after its end."""
        return (*self.pieces[:n], *(" " for _ in range(n - len(self.pieces))))


def form_of(data: Mapping[str, Any], prompt: str, seed: int, invalid_share: float) -> Formed | None:
    """The form that a request asks for; None where any text will do."""
    draw = _Draw(f"{seed}/{prompt}")
    broken = draw.share() < invalid_share
    offered = (one.get("function") for one in data.get("tools") or () if isinstance(one, dict))
    tools = [one for one in offered if isinstance(one, dict)]
    choice = data.get("tool_choice", "auto")
    if tools and choice != "none":
        named = isinstance(choice, dict)
        wanted = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
        tool = next((one for one in tools if one.get("name") == wanted), None) or draw.one_of(tools)
        return Formed(str(tool.get("name")), _pieces(tool.get("parameters") or {"type": "object"}, draw, broken), named)
    asked = data.get("response_format")
    if isinstance(asked, dict) and isinstance(asked.get("json_schema"), dict):
        return Formed(None, _pieces(asked["json_schema"].get("schema") or {}, draw, broken))
    return None


def _pieces(schema: Any, draw: _Draw, broken: bool) -> tuple[str, ...]:
    text = json.dumps(_value(schema, schema, draw, 0))
    text = text[:-1] if broken else text
    return tuple(text[i : i + TOKEN_CHARS] for i in range(0, len(text), TOKEN_CHARS))


def _value(schema: Any, root: Any, draw: _Draw, depth: int) -> Any:
    """A value by a schema."""
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return None
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return draw.one_of(schema["enum"])
    for inner in _alternatives(schema, root):
        return _value(inner, root, draw, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        properties = schema.get("properties", {})
        return {key: _value(one, root, draw, depth + 1) for key, one in properties.items()}
    if kind == "array":
        n = min(_MOST_ITEMS, schema.get("minItems", min(2, schema.get("maxItems", 2))))
        return [_value(schema.get("items", {}), root, draw, depth + 1) for _ in range(n)]
    return _plain(kind, schema, draw)


def _alternatives(schema: Mapping[str, Any], root: Any) -> Iterator[Any]:
    """The first schema that stands for this one: what it refers to, or the first of several."""
    if isinstance(schema.get("$ref"), str):
        target = root
        for key in schema["$ref"].removeprefix("#").strip("/").split("/"):
            target = target.get(key, target) if isinstance(target, dict) else target
        yield target
    yield from (schema[key][0] for key in ("anyOf", "oneOf", "allOf") if isinstance(schema.get(key), list) and schema[key])


def _plain(kind: object, schema: Mapping[str, Any], draw: _Draw) -> Any:
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        return int(low) + draw.below(1 + max(0, int(schema.get("maximum", low + 100)) - int(low)))
    if kind == "boolean":
        return draw.below(2) == 0
    if kind == "null":
        return None
    text = f"{draw.one_of(_WORDS)} {draw.one_of(_WORDS)}"
    return text.ljust(int(schema.get("minLength", 0)), "x")[: int(schema.get("maxLength", 2000))]
