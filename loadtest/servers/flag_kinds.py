"""The kinds of flags: each writes a setting on a command line (`words`) and reads it back (`read_word`).

`told` is the key of the setting in the engine's own info, whose value `read_told` reads. `default` is what the engine does
where its command line says nothing (None: not known). `write` gives the engine's word for a value of ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

YARN_FACTOR = 4.0

YARN_ORIGINAL_TOKENS = 32768

YARN_CONTEXT_TOKENS = int(YARN_FACTOR * YARN_ORIGINAL_TOKENS)

_ROPE_THETA = 1000000.0  # of QwQ, Qwen2.5 and Qwen3; a model directory says its own

SettingValue = str | int | float | bool | None


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A flag with a value after it. `write` gives the engine's word for a value of ours, `read` ours for the engine's."""

    name: str
    write: Callable[[Any], Any] = _same
    read: Callable[[Any], Any] = str
    unset: SettingValue = None  # a value, besides None, for which the flag is left out
    told: str | None = None
    default: SettingValue = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def words(self, value: SettingValue, model: str) -> list[str]:
        return [] if value in (None, self.unset) else [self.name, str(self.write(value))]

    def read_word(self, name: str, word: str) -> SettingValue:
        """The value that `word` after the flag stands for; the word itself where it is no such value."""
        try:
            value: SettingValue = self.read(word)
            return value
        except ValueError:
            return word

    def read_told(self, value: Any) -> SettingValue:
        return self.read_word(self.name, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A flag without a value: `on` is given for true, `off` for false. `told` is true for `off` where there is no `on`."""

    on: str | None = None
    off: str
    told: str | None = None
    default: SettingValue = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.on, self.off) if name is not None)

    def write(self, value: SettingValue) -> SettingValue:
        return value

    def words(self, value: SettingValue, model: str) -> list[str]:
        name = self.on if value else self.off
        return [] if name is None else [name]

    def read_word(self, name: str, word: str) -> SettingValue:
        return name == self.on

    def read_told(self, value: Any) -> SettingValue:
        return (value if self.on else not value) if isinstance(value, bool) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnOverride:
    """YaRN: a flag with JSON that replaces `key` of the model's own config. True where the JSON speaks of YaRN."""

    name: str
    key: str
    told: str | None = None
    default: SettingValue = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def write(self, value: SettingValue) -> SettingValue:
        return value

    def words(self, value: SettingValue, model: str) -> list[str]:
        if not value:
            return []
        rope = {
            "rope_type": "yarn",
            "rope_theta": _rope_theta(model),
            "factor": YARN_FACTOR,
            "original_max_position_embeddings": YARN_ORIGINAL_TOKENS,
        }
        return [self.name, json.dumps({self.key: rope, "max_position_embeddings": YARN_CONTEXT_TOKENS})]

    def read_word(self, name: str, word: str) -> SettingValue:
        return "yarn" in word

    def read_told(self, value: Any) -> SettingValue:
        return "yarn" in str(value)


def _rope_theta(model: str) -> float:
    path = Path(model) / "config.json"
    if not path.is_file():
        return _ROPE_THETA
    config = json.loads(path.read_text(encoding="utf-8"))
    nested = config.get("rope_parameters") or {}
    return float(config.get("rope_theta") or nested.get("rope_theta") or _ROPE_THETA)


Column = Flag | Switch | YarnOverride
