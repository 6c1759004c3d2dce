"""A study from TOML: tables checked, cells expanded, errors with their line."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import math
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import MISSING, Field, fields, replace
from pathlib import Path
from typing import Any, Protocol, get_type_hints

import msgspec

from loadtest.credentials import is_secret
from loadtest.decision.start_variation import seen_start_sd
from loadtest.decision.verdicts import LOOKS, MATTERS
from loadtest.errors import UsageError
from loadtest.metrics.schema import decode as decode_metrics
from loadtest.records import read
from loadtest.records.environment import describe
from loadtest.records.schema import Mode
from loadtest.study.schema import VARIABLE, Cell, Study, of_servers, require
from loadtest.workload.workload import usual_mode

_STUDY_CHARS = 2**20  # the longest study; `/dev/zero` has no end


_AXES = ("model", "tp", "engine")  # a list of these stands for as many cells
_SERVERS = "base_url"  # a list of it for one cell with as many servers


def _cell_field(one: Field[Any], kind: Any) -> tuple[str, Any] | tuple[str, Any, Any]:
    """A key of `[[cells]]` for a field of `Cell`."""
    shape = kind | tuple[kind, ...] if one.name in _AXES else kind | tuple[str, ...] if one.name == _SERVERS else kind
    if one.default_factory is not MISSING:
        return (one.name, shape, one.default_factory())
    return (one.name, shape) if one.default is MISSING else (one.name, shape, one.default)


class _LevelTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A named level of a factor: what it adds to the cell."""

    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    executable: str | None = None
    grammar: bool | None = None


_Value = bool | int | float | str
_Vary = dict[str, tuple[_Value, ...] | dict[str, _LevelTable]]

_OWN = ("mode", "side", "factors", "base_urls")  # fields of a cell that no table has

_CellTable = msgspec.defstruct(
    "_CellTable",
    [
        *(_cell_field(one, get_type_hints(Cell)[one.name]) for one in fields(Cell) if one.name not in _OWN),
        ("vary", _Vary, {}),
    ],
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
)


class _PricesTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    gpu_hour: float
    currency: str = "USD"


class _StudyTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    workload: str
    cells: tuple[_CellTable, ...]  # type: ignore[valid-type]
    question: str = ""
    scenario: str = "long_reasoning"
    scenario_options: dict[str, str | int | float | bool] = {}
    mode: Mode | tuple[Mode, ...] | None = None  # None: as the workload's outputs usually end
    levels: tuple[int, ...] = (1, 2, 4, 8)
    repeats: int | None = None
    until_decided: bool | None = None
    requests_per_stream: int = 2
    min_requests: int = 8
    prompts: int | None = None
    natural_users: int = 16
    natural_prompts: int = 64
    duration_s: float | None = None
    warmup_requests: int = 1
    cooldown_s: float = 0.0
    workers: int = 1
    seed: int = 0
    baseline: str | None = None
    slo: tuple[str, ...] = ()
    matters: float = MATTERS
    start_sd: float | str | None = None
    findings: str | None = None
    contract: dict[str, Any] = {}
    prices: _PricesTable | None = None


def load_study(path: Path, check: Callable[[Study], object] = lambda study: None) -> Study:
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
    study = parse_study(text, str(path))
    with _located(text, str(path)):
        check(study)
    return study


def parse_study(text: str, where: str = "study") -> Study:
    """Parse the text of a study; `where` names it in messages.

    >>> study = parse_study('name="x"\\nworkload="math"\\n[[cells]]\\nengine=["vllm","sglang"]\\nmodel="qwq-32b"\\ntp=2')
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
    modes = _listed(usual_mode(table.workload) if table.mode is None else table.mode)
    alone = "decision" not in modes or len(modes) == 1
    require(
        0 < len(modes) == len(set(modes)) and alone, "mode", "natural, equal-work, a list of both, or decision", list(modes)
    )
    known = {name for cell in cells for name in (cell.name, cell.id) if name is not None}
    named = table.baseline is None or table.baseline in known
    require(named, "baseline", f"the name or the id of a cell, one of {', '.join(sorted(known))}", table.baseline)
    if isinstance(table.start_sd, str):
        plain["start_sd"] = measured_start_sd(Path(table.start_sd), cells, describe().cpu)
    decides = modes[0] == "decision"
    plain["repeats"] = (LOOKS[-1] if decides else 1) if table.repeats is None else table.repeats
    plain["until_decided"] = decides if table.until_decided is None else table.until_decided
    cells = tuple(replace(cell, mode=mode) for mode in (None, *modes[1:]) for cell in cells)
    unsaid = frozenset(key for key in ("mode", "repeats", "until_decided") if getattr(table, key) is None)
    return Study(**plain | {"mode": modes[0], "cells": cells, "unsaid": unsaid})


def measured_start_sd(run: Path, cells: Sequence[ServedCell], cpu: str | None) -> float:
    """How much starts of a server vary (a share) by an earlier run, for these cells of a run on this processor.

    Raises `UsageError`: it has no two starts of a pair, another processor or other GPUs, or simulates what is real now.
    """
    manifest = read.read_manifest(run / "manifest.json")
    metrics = decode_metrics(read.read_bytes(run / "metrics.json"), str(run / "metrics.json"))
    there = None if manifest.environment is None else manifest.environment.cpu
    require(there == cpu, "start_sd", f"a run of the same machine ({cpu}) in {run}", there)
    gpus, known = ({one.gpu for one in some} for some in (cells, metrics.cells))
    require(gpus <= known, "start_sd", f"a run on {_gpu_names(gpus)} in {run}", _gpu_names(known))
    real = any(not one.simulated for one in cells)
    require(not (real and metrics.simulated), "start_sd", f"a run of real engines in {run}", "a simulated one")
    found = seen_start_sd(metrics)
    require(found is not None, "start_sd", f"a run with two starts of a pair in {run}", "none")
    return found or 0.0


def start_sd_of(text: str, cells: Sequence[ServedCell], cpu: str | None) -> float:
    """Of a command line: a percentage, or the folder of an earlier run."""
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        return measured_start_sd(Path(text), cells, cpu)
    require(0 <= percent < 100, "--start-sd", "a percentage from 0 up and below 100, or the folder of a run", text)
    return percent / 100


class ServedCell(Protocol):
    """A cell of a study, or of a run that is over."""

    @property
    def gpu(self) -> str | None: ...
    @property
    def simulated(self) -> bool: ...


def _gpu_names(gpus: Collection[str | None]) -> str:
    return ", ".join(sorted(one or "no GPU" for one in gpus))


def _expand_cell(table: msgspec.Struct) -> list[Cell]:
    plain = {f.name: getattr(table, f.name) for f in fields(Cell) if hasattr(table, f.name)}
    if isinstance(plain[_SERVERS], tuple):
        plain |= of_servers(plain[_SERVERS])
    axes = [_listed(plain.pop(axis)) for axis in _AXES]
    cells = [Cell(**plain, **dict(zip(_AXES, one, strict=True))) for one in itertools.product(*axes)]
    vary: _Vary = table.vary  # type: ignore[attr-defined]
    return [varied for cell in cells for varied in _varied(cell, vary)]


# What is varied ------------------------------------------------------------------------------------------------------

UNSET = "unset"  # the level of a factor at which the engine is told nothing

_FLAG = re.compile(r"--?[A-Za-z][\w.-]*")
# Switches of vLLM 0.32 that have no `--no-NAME`.
_ONLY_ON = ("--aggregate-engine-logging", "--data-parallel-multi-port-external-lb", "--grpc", "--headless")
_SLUG_CHARS = 40
_MOST_COMBINATIONS = 64


def _varied(cell: Cell, vary: _Vary) -> list[Cell]:
    """The cell at every combination of the levels of its factors; the cell itself where it has none."""
    if not vary:
        return [cell]
    require(cell.base_url is None, "vary", "a cell that the run starts", cell.base_url)
    n = math.prod(map(len, vary.values()))
    require(n <= _MOST_COMBINATIONS, "vary", f"at most {_MOST_COMBINATIONS} combinations of levels", n)
    factors = [[(factor, *one) for one in _factor_levels(cell, factor, levels)] for factor, levels in vary.items()]
    return [_at_levels(cell, combined) for combined in itertools.product(*factors)]


def _at_levels(cell: Cell, levels: tuple[tuple[str, str, _LevelTable], ...]) -> Cell:
    label = ",".join(f"{factor.lstrip('-')}={name}" for factor, name, _ in levels)
    executables = [one.executable for *_, one in levels if one.executable is not None]
    require(len(executables) < 2, "vary", "an executable by one factor at most", len(executables))
    return replace(
        cell,
        name=",".join(filter(None, (cell.name, label))),
        args=(*cell.args, *(word for *_, one in levels for word in one.args)),
        env=cell.env | {name: value for *_, one in levels for name, value in one.env.items()},
        executable=next(iter(executables), cell.executable),
        grammar=next((one.grammar for *_, one in levels if one.grammar is not None), cell.grammar),
        factors={factor: name for factor, name, _ in levels},
    )


def _factor_levels(
    cell: Cell, factor: str, levels: tuple[_Value, ...] | dict[str, _LevelTable]
) -> list[tuple[str, _LevelTable]]:
    """Each level of a factor: its name, and what it adds to the cell."""
    require(len(levels) > 1, "vary", f"two levels or more of {factor}", len(levels))
    if isinstance(levels, dict):
        return list(levels.items())
    names = [_level_name(value) for value in levels]
    if is_secret(factor) or len(set(names)) < len(names):
        names = [str(number) for number, _ in enumerate(levels, 1)]
    return [(name, _level_of(cell, factor, value)) for name, value in zip(names, levels, strict=True)]


def _level_name(value: _Value) -> str:
    """A level's name, which may stand in the name of a folder.

    >>> _level_name(True), _level_name("builds/vllm-1/bin/vllm")
    ('true', 'builds-vllm-1-bin-vllm')
    """
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-.")[:_SLUG_CHARS] or "empty"


def _level_of(cell: Cell, factor: str, value: _Value) -> _LevelTable:
    """What a plain value of a factor adds to a cell: a flag, a variable or the executable."""
    if factor == "executable":
        return _LevelTable(executable=str(value))
    if factor == "grammar":
        require(isinstance(value, bool), "vary", "true or false as levels of grammar", value)
        return _LevelTable(grammar=bool(value))
    if value == UNSET:
        return _LevelTable()
    if _FLAG.fullmatch(factor):
        return _LevelTable(args=flag_words(cell.engine, factor, value))
    known = "a flag such as --max-num-seqs, a variable in capitals, executable, grammar, or named levels with these"
    require(VARIABLE.fullmatch(factor) is not None and factor == factor.upper(), "vary", known, factor)
    return _LevelTable(env={factor: str(int(value)) if isinstance(value, bool) else str(value)})


def flag_words(engine: str, name: str, value: _Value) -> tuple[str, ...]:
    """A flag at one level. False: vLLM's parsers have `--no-NAME`; elsewhere a switch that is off is left out.

    >>> flag_words("vllm", "--enable-chunked-prefill", False), flag_words("sglang", "--disable-radix-cache", False)
    (('--no-enable-chunked-prefill',), ())
    """
    if value is True:
        return (name,)
    if value is False:
        negated = engine == "vllm" and not name.startswith(("--no-", "--disable-")) and name not in _ONLY_ON
        return (f"--no-{name.removeprefix('--')}",) if negated else ()
    return (name, str(value))


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
    known = (
        _LevelTable
        if "vary" in keys
        else _CellTable
        if "cells" in keys
        else _PricesTable
        if "prices" in keys
        else _StudyTable
    )
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
