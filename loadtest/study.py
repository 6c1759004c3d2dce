"""A study: what a TOML file asks for, validated with line and key, expanded into cells.

name = "qwq-32b on two cards"
levels = [1, 2, 4, 8]
workload = "math:n=64,seed=7"

[[cells]]
engine = ["sglang", "vllm"]     # lists multiply: this table stands for 4 cells
model = "qwq-32b-awq"
tp = [1, 2]
gpu = "l20"
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from loadtest import hardware, slo
from loadtest.credentials import first_secret
from loadtest.endpoint import normalise_url
from loadtest.errors import UsageError
from loadtest.records import cell_id

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Engine = Literal["sglang", "vllm", "sglang-sim", "vllm-sim", "other"]
Mode = Literal["natural", "equal-work"]
_OURS = ("--host", "--port")
_OPTION = re.compile("[a-z][a-z_]{0,40}")
_OF_A_PASS = re.compile(  # what a study says by keys of its own, or Locust is told by us
    "cell|clock_speed|engine|exit_code_on_error|headless|host|locustfile|max_tokens|mode|model|only_summary|out|processes"
    "|repeat|requests|run_id|run_time|seed|skip_log_setup|spawn_rate|tp|users|warmup_requests|workload"
)
_ONLY = ("engine", "model", "tp", "gpu", "mode", "cell", "concurrency")
_MODEL_CHARS = 1000
_STUDY_CHARS = 2**20  # the longest study; `/dev/zero` has no end


class _CellTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    engine: Engine | tuple[Engine, ...]
    model: str | tuple[str, ...]
    tp: int | tuple[int, ...] = 1
    gpu: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    context_tokens: int | None = None
    yarn: bool = False
    memory_fraction: float | None = None
    clock_speed: float | None = None
    args: tuple[str, ...] = ()


class _PricesTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    gpu_hour: float
    currency: str = "USD"


class _StudyTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    workload: str
    cells: tuple[_CellTable, ...]
    question: str = ""
    scenario: str = "long_reasoning"
    scenario_options: dict[str, str | int | float | bool] = {}
    mode: Mode | tuple[Mode, ...] = "natural"
    levels: tuple[int, ...] = (1, 2, 4, 8)
    repeats: int = 1
    requests_per_stream: int = 2
    min_requests: int = 8
    duration_s: float | None = None
    warmup_requests: int = 1
    cooldown_s: float = 0.0
    workers: int = 1
    seed: int = 0
    slo: tuple[str, ...] = ()
    findings: str | None = None
    contract: dict[str, Any] = {}
    prices: _PricesTable | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One engine x model x tensor-parallel size x GPU; with `base_url` it is measured as it runs, else it is started.

    `api_key_env` names the variable that holds its key (null: LOADTEST_API_KEY, else OPENAI_API_KEY). `mode` is that of a
    study's second mode (null: the study's own).
    """

    engine: Engine
    model: str
    tp: int = 1
    gpu: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    context_tokens: int | None = None
    yarn: bool = False
    memory_fraction: float | None = None
    clock_speed: float | None = None
    args: tuple[str, ...] = ()
    mode: Mode | None = None

    def __post_init__(self) -> None:
        _require(self.tp >= 1, "tp", "a number of cards from 1 up", self.tp)
        _require(self.engine in get_args(Engine), "engine", f"one of {', '.join(get_args(Engine))}", repr(self.engine))
        _require(
            0 < len(self.model) <= _MODEL_CHARS and self.model.isprintable(),
            "model",
            "a registry name, a hub name or a directory",
            repr(self.model[:80]),
        )
        started = self.base_url is None
        _require(not (started and self.engine == "other"), "base_url", "the URL of a cell whose engine is 'other'", None)
        _require(
            self.clock_speed is None or (self.simulated and self.clock_speed > 0),
            "clock_speed",
            "a number above 0, and only for a simulated engine",
            self.clock_speed,
        )
        _require(
            self.context_tokens is None or self.context_tokens >= 1, "context_tokens", "at least 1", self.context_tokens
        )
        ours = next((arg for arg in self.args if arg.partition("=")[0] in _OURS), None)
        _require(ours is None, "args", "neither --host nor --port, as a server of ours listens on 127.0.0.1 alone", ours)
        secret = first_secret(self.args)
        _require(secret is None, "args", "no key on a command line, where it would be recorded", secret)
        _require(
            self.api_key_env is None or (not started and re.fullmatch("[A-Z][A-Z0-9_]*", self.api_key_env) is not None),
            "api_key_env",
            "the name of an environment variable, such as GROQ_API_KEY, of a cell with a base_url",
            "something else",
        )
        if self.base_url is not None:
            _explained("base_url", normalise_url, self.base_url)
        if self.gpu is not None:
            _explained("gpu", hardware.gpu, self.gpu)
        fraction = self.memory_fraction
        _require(fraction is None or 0 < fraction < 1, "memory_fraction", "a share between 0 and 1", fraction)

    @property
    def id(self) -> str:
        """Identity within the run: `ENGINE_MODEL_tpN`, and its mode where that is not the study's first."""
        return cell_id(self.engine, self.model, self.tp) + (f"_{self.mode}" if self.mode else "")

    @property
    def simulated(self) -> bool:
        """Is the runtime our simulator? Its figures predict; they never measure a runtime."""
        return self.engine.endswith("-sim")


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What to measure: cells x levels x repeats, one workload, one contract.

    A pass over a level of C streams sends `max(min_requests, requests_per_stream * C)` measured requests, or as many as
    fit into `duration_s` where that is given; each stream sends `warmup_requests` before them. Before each
    pass nothing is asked for `cooldown_s` (wall): cards cool down. `workers` processes of Locust here share the streams.
    `scenario_options` are the scenario's own: `{rate = 0.5}` is its `--rate 0.5`.
    """

    name: str
    workload: str
    cells: tuple[Cell, ...]
    question: str = ""
    scenario: str = "long_reasoning"
    scenario_options: dict[str, str | int | float | bool] = field(default_factory=dict)
    mode: Mode = "natural"
    levels: tuple[int, ...] = (1, 2, 4, 8)
    repeats: int = 1
    requests_per_stream: int = 2
    min_requests: int = 8
    duration_s: float | None = None
    warmup_requests: int = 1
    cooldown_s: float = 0.0
    workers: int = 1
    seed: int = 0
    slo: tuple[str, ...] = ()
    findings: str | None = None
    contract: dict[str, Any] | None = None
    gpu_hour_price: float | None = None
    currency: str = "USD"

    def __post_init__(self) -> None:
        _require(bool(self.cells), "cells", "at least one cell", "none")
        _require(bool(self.levels) and min(self.levels) >= 1, "levels", "numbers of streams from 1 up", self.levels)
        _require(len(set(self.levels)) == len(self.levels), "levels", "each number of streams once", self.levels)
        ours = sorted(key for key in self.scenario_options if not _OPTION.fullmatch(key) or _OF_A_PASS.fullmatch(key))
        _require(not ours, "scenario_options", "options of the scenario's own, as rate = 0.5", ", ".join(ours))
        secret = first_secret(self.scenario_options)
        _require(secret is None, "scenario_options", "no key on a command line, where it would be recorded", secret)
        _require(self.repeats >= 1, "repeats", "a number from 1 up", self.repeats)
        _require(self.requests_per_stream >= 1, "requests_per_stream", "a number from 1 up", self.requests_per_stream)
        _require(self.min_requests >= 1, "min_requests", "a number from 1 up", self.min_requests)
        _require(self.warmup_requests >= 0, "warmup_requests", "a number from 0 up", self.warmup_requests)
        _require(0 <= self.cooldown_s < math.inf, "cooldown_s", "seconds from 0 up", self.cooldown_s)
        _require(self.workers >= 1, "workers", "a number of processes from 1 up", self.workers)
        duration_s, price = self.duration_s, self.gpu_hour_price
        _require(duration_s is None or 0 < duration_s < math.inf, "duration_s", "seconds above 0", duration_s)
        _require(price is None or 0 <= price < math.inf, "gpu_hour", "a price from 0 up", price)
        for objective in self.slo:
            _explained("slo", slo.parse, objective)
        ids = [cell.id for cell in self.cells]
        twice = sorted({one for one in ids if ids.count(one) > 1})
        _require(not twice, "cells", "each engine x model x tp once", ", ".join(twice))

    def requests(self, concurrency: int) -> int:
        """Measured requests in one pass over a level of `concurrency` streams."""
        return max(self.min_requests, self.requests_per_stream * concurrency)

    @property
    def simulated(self) -> bool:
        """Does any figure of this study come from a simulated runtime?"""
        return any(cell.simulated for cell in self.cells)


def _require(holds: bool, key: str, expected: str, got: object) -> None:
    if not holds:
        raise UsageError(f"{key}: expected {expected}, got {got}")


def _explained(key: str, check: Callable[[str], object], value: str) -> None:
    """Have another module check a value, and name our key in its message."""
    try:
        check(value)
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from None


def load(path: Path, check: Callable[[Study], object] = lambda study: None) -> Study:
    """Read and expand a study file. Raises `UsageError` with file, line and key, and the nearest known key.

    `check` may refuse what only others know (the workload, the contract): what it says is given the line of its key.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(_STUDY_CHARS + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot read this study: {error}") from error
    if len(text) > _STUDY_CHARS:
        raise UsageError(f"{path}: expected a study of at most {_STUDY_CHARS:,} characters, got more")
    study = parse(text, str(path))
    with _located(text, str(path)):
        check(study)
    return study


def parse(text: str, where: str = "study") -> Study:
    """Parse the text of a study; `where` names it in messages.

    >>> study = parse('name="x"\\nworkload="math"\\n[[cells]]\\nengine=["vllm","sglang"]\\nmodel="qwq-32b"\\ntp=2')
    >>> [cell.id for cell in study.cells]
    ['vllm_qwq-32b_tp2', 'sglang_qwq-32b_tp2']
    """
    try:
        table = msgspec.convert(tomllib.loads(text), _StudyTable)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: expected TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise UsageError(_explain(str(error), text, where)) from error
    cells: list[Cell] = []
    for number, cell in enumerate(table.cells):
        with _located(text, where, number):
            cells += _expand_cell(cell)
    with _located(text, where):
        return _expand(table, tuple(cells))


def _expand(table: _StudyTable, cells: tuple[Cell, ...]) -> Study:
    plain = {f.name: getattr(table, f.name) for f in fields(Study) if hasattr(table, f.name)}
    if table.prices is not None:
        plain.update(gpu_hour_price=table.prices.gpu_hour, currency=table.prices.currency)
    modes = _listed(table.mode)
    _require(0 < len(modes) == len(set(modes)), "mode", "natural, equal-work, or a list of both", list(modes))
    cells = tuple(replace(cell, mode=mode) for mode in (None, *modes[1:]) for cell in cells)
    return Study(**plain | {"mode": modes[0], "cells": cells})


def _expand_cell(table: _CellTable) -> list[Cell]:
    plain = {f.name: getattr(table, f.name) for f in fields(Cell) if hasattr(table, f.name)}
    axes = [_listed(plain.pop(axis)) for axis in ("model", "tp", "engine")]
    return [Cell(model=model, tp=tp, engine=engine, **plain) for model, tp, engine in itertools.product(*axes)]


def _listed(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


@contextlib.contextmanager
def _located(text: str, where: str, cell: int | None = None) -> Iterator[None]:
    """Give a `UsageError` raised inside the file, and the line of the key that it names, in the table of a cell if told."""
    try:
        yield
    except UsageError as error:
        key = re.match(r"(?:contract: )?(\w*)", str(error))
        raise UsageError(f"{where}:{_line_of(key[1] if key else '', text, cell)}: {error}") from error


def _explain(message: str, text: str, where: str) -> str:
    """Turn a validation message (`Expected int, got str - at $.cells[0].tp`) into file:line: key: expected, got."""
    said, _, place = message.partition(" - at ")
    keys = re.findall(r"[A-Za-z_]\w*", place)
    number = re.search(r"cells\[(\d+)\]", place)
    cell = int(number[1]) if number else None
    unknown = re.search(r"unknown field `(.+)`", said)
    if unknown is None:
        missing = re.search(r"missing required field `(.+)`", said)
        key = missing[1] if missing else (keys[-1] if keys else "")
        hint = "; add it" if missing else ""
        return f"{where}:{_line_of(key, text, cell)}: {key}: {said[:1].lower()}{said[1:].replace('`', '')}{hint}"
    known = _CellTable if "cells" in keys else _PricesTable if "prices" in keys else _StudyTable
    names = known.__struct_fields__
    near = difflib.get_close_matches(unknown[1], names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(names)}"
    return f"{where}:{_line_of(unknown[1], text, cell)}: {unknown[1]}: unknown key; {hint}"


_CELLS = re.compile(r"^\s*\[\[\s*cells\s*\]\]")


def _line_of(key: str, text: str, cell: int | None = None) -> int:
    """The first line that sets `key`, in the table of the `cell`-th cell where one is meant; else where that begins."""
    lines = text.splitlines()
    tables = [number for number, line in enumerate(lines) if _CELLS.match(line)]
    begin = tables[cell] if cell is not None and cell < len(tables) else 0
    end = tables[cell + 1] if cell is not None and cell + 1 < len(tables) else len(lines)
    pattern = re.compile(rf"^\s*(\[+\s*)?[\"']?{re.escape(key)}[\"']?\s*[\]=.]")
    return next((number for number in range(begin, end) if pattern.match(lines[number])), begin) + 1


def select(study: Study, only: list[str]) -> Study:
    """Keep the cells and levels that match every `KEY=VALUE`, the keys of `_ONLY`."""

    def told(cell: Cell) -> str:
        return str({"cell": cell.id, "mode": cell.mode or study.mode}.get(key) or getattr(cell, key))

    cells, levels = study.cells, study.levels
    for condition in only:
        key, equals, value = condition.partition("=")
        if not equals or key not in _ONLY:
            raise UsageError(f"--only {condition}: expected KEY=VALUE with a key of {', '.join(_ONLY)}")
        if key == "concurrency":
            levels = tuple(level for level in levels if str(level) == value)
        else:
            cells = tuple(cell for cell in cells if told(cell) == value)
    if not cells or not levels:
        raise UsageError(f"--only {' '.join(only)}: expected at least one cell and level of the study, none is left")
    return replace(study, cells=cells, levels=levels)


def parse_levels(text: str) -> tuple[int, ...]:
    """Levels from a command line: `4`, `1,2,4,8`, or `1-8` for each number from 1 to 8.

    >>> parse_levels("1-3,8")
    (1, 2, 3, 8)
    """
    levels: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        if match is None:
            raise UsageError(f"--concurrency {text}: expected numbers and ranges such as 1,2,4,8 or 1-8")
        low, high = int(match[1]), int(match[2] or match[1])
        if not 1 <= low <= high:
            raise UsageError(f"--concurrency {text}: expected a range from 1 up, got {part}")
        levels.extend(range(low, high + 1))
    return tuple(dict.fromkeys(levels))
