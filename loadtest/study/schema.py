"""A study: what a TOML file asks for, validated with line and key, expanded into cells.

name = "qwq-32b on two GPUs"
levels = [1, 2, 4, 8]
workload = "math:n=64,seed=7"

[[cells]]
engine = ["sglang", "vllm"]     # lists multiply: this table stands for 4 cells
model = "qwq-32b-awq"
tp = [1, 2]
gpu = "l20"
vary = {"--max-running" = [8, 64]}     # and for twice as many
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from loadtest.credentials import WITHHELD, first_secret, hide_secrets, read_header
from loadtest.decision.verdicts import LOOKS, MATTERS
from loadtest.errors import UsageError
from loadtest.metrics import slo as slos
from loadtest.perfmodel import gpus, interconnect, machine_fit
from loadtest.records.engine_facts import SearchedKind, Side
from loadtest.records.folder import PassKind, cell_id, level_name
from loadtest.records.schema import Api, EngineName, LengthMode, Mode
from loadtest.servers.preflight import HERE
from loadtest.servers.probe import normalise_url
from loadtest.servers.route import Route, check_route
from loadtest.workload.forms.generator import is_formed

_OURS = ("--host", "--port")

_OPTION = re.compile("[a-z][a-z_]{0,40}")

_OF_A_PASS = re.compile(  # what a study says by keys of its own, or Locust is told by us
    "cell|clock_speed|engine|exit_code_on_error|grammar|headless|host|locustfile|max_tokens|mode|model|only_summary|out|processes"
    "|duration|repeat|requests|run_id|run_time|seed|skip_log_setup|spawn_rate|tp|users|warmup_requests|workload"
)

_ONLY = ("engine", "model", "tp", "gpu", "mode", "name", "cell", "concurrency")

_MODEL_CHARS = 1000
MOST_USERS, MOST_REQUESTS, MOST_REPEATS = 99_999, 10**9, 10**6  # what one machine and the names of folders can hold
MOST_WORKERS, MOST_GPUS = 1000, 100_000

_NAME = re.compile(r"[A-Za-z0-9][\w.,=+-]{0,119}", re.ASCII)  # part of the name of a folder

VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")  # of an environment

CLOSED_LOOP = "long_reasoning"  # the scenario that keeps so many requests in flight
OPEN_LOOP = "open_loop"  # and the one that sends by the clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One engine x model x tensor-parallel size x GPU; with `base_url` it is measured as it runs, else it is started.

    `name` tells configurations of one engine apart: with a name, `args` are part of what is asked of the engine, else they
    are held against the contract. `factors`: what the study varies, and this cell's level of each. `env` is added to the
    engine's environment, `executable` starts it in place of what this machine has.
    `base_urls`: of several servers, which take turns, `base_url` being the first. Behind a `base_url` may be a router:
    `metrics_urls` are the servers whose `/metrics` count the work, `gpus` how many GPUs of each kind they use in all.
    `api_key_env` names the variable that holds its key (None: LOADTEST_API_KEY, else OPENAI_API_KEY). `api` is the endpoint
    that is asked, `headers` are further ones of its requests, each with the variable that holds its value. `proxy`,
    `insecure`: the way to it. `mode`: of a study's second mode (None: the study's); `grammar`: in place of the
    contract's. `interconnect` (how its GPUs reach each other) and `calibration` (a file that `loadtest calibrate` wrote) are
    for predictions and the simulator.
    """

    engine: EngineName
    model: str
    tp: int = 1
    gpu: str | None = None
    base_url: str | None = None
    base_urls: tuple[str, ...] = ()
    api_key_env: str | None = None
    metrics_urls: tuple[str, ...] = ()
    gpus: dict[str, int] = field(default_factory=dict)
    api: Api = "chat"
    headers: dict[str, str] = field(default_factory=dict, hash=False)
    proxy: str | None = None
    insecure: bool = False
    context_tokens: int | None = None
    yarn: bool = False
    memory_fraction: float | None = None
    clock_speed: float | None = None
    args: tuple[str, ...] = ()
    name: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    executable: str | None = None
    factors: dict[str, str] = field(default_factory=dict)
    interconnect: str | None = None
    calibration: str | None = None
    mode: LengthMode | None = None
    grammar: bool | None = None
    side: Side | None = None

    def __post_init__(self) -> None:
        _whole("tp", self.tp, of="a number of GPUs", most=MOST_GPUS)
        require(
            self.engine in get_args(EngineName), "engine", f"one of {', '.join(get_args(EngineName))}", repr(self.engine)
        )
        require(
            0 < len(self.model) <= _MODEL_CHARS and self.model.isprintable(),
            "model",
            "a registry name, a hub name or a directory",
            repr(self.model[:80]),
        )
        started = self.base_url is None
        require(not (started and self.engine == "other"), "base_url", "the URL of a cell whose engine is 'other'", None)
        require(
            self.clock_speed is None or (self.simulated and self.clock_speed > 0),
            "clock_speed",
            "a number above 0, and only for a simulated engine",
            self.clock_speed,
        )
        named = self.name is None or _NAME.fullmatch(self.name) is not None
        require(named, "name", "letters, digits and . , = + - _ (at most 120)", self.name)
        priced = self.grammar is None or not self.simulated
        require(priced, "grammar", "an engine, as no simulator knows what it costs", self.engine)
        own = [key for key in ("env", "executable") if getattr(self, key)]
        require(started or not own, "base_url", f"none in a cell with {' and '.join(own)}", self.base_url)
        _check_env(self.env)
        require(self.context_tokens is None or self.context_tokens >= 1, "context_tokens", "at least 1", self.context_tokens)
        require(self.api in get_args(Api), "api", f"one of {', '.join(get_args(Api))}", repr(self.api))
        ours = next((arg for arg in self.args if arg.partition("=")[0] in _OURS), None)
        require(ours is None, "args", "neither --host nor --port, as a server of ours listens on 127.0.0.1 alone", ours)
        secret = first_secret(self.args)
        require(secret is None, "args", "no key on a command line, where it would be recorded", secret)
        require(
            self.api_key_env is None or (not started and re.fullmatch("[A-Z][A-Z0-9_]*", self.api_key_env) is not None),
            "api_key_env",
            "the name of an environment variable, such as GROQ_API_KEY, of a cell with a base_url",
            "something else",
        )
        for name, variable in self.headers.items():
            _explained("headers", read_header, f"{name}={variable}")
        require(not (started and self.headers), "headers", "none of a cell without base_url", ", ".join(self.headers))
        require(not started or not (self.metrics_urls or self.gpus), "metrics_urls", "a base_url with it, and gpus", "none")
        self._check_urls()
        for kind, n in self.gpus.items():
            _explained("gpus", gpus.gpu, kind)
            require(n >= 1, "gpus", f"a number of {kind} from 1 up", n)
        if self.gpu is not None:
            _explained("gpu", gpus.gpu, self.gpu)
        if self.interconnect not in (None, HERE):
            _explained("interconnect", interconnect.check, self.interconnect)
        if self.calibration is not None:
            _explained("calibration", lambda name: machine_fit.read_machine(Path(name)), self.calibration)
        fraction = self.memory_fraction
        require(fraction is None or 0 < fraction < 1, "memory_fraction", "a share between 0 and 1", fraction)

    def _check_urls(self) -> None:
        """Servers that run already, and the way to them."""
        for url in self.urls:
            _explained("base_url", normalise_url, url)
        known = [normalise_url(url) for url in self.urls]
        require(len(set(known)) == len(known), "base_url", "each server once", ", ".join(known))
        direct = self.route == Route()
        require(bool(known) or direct, "base_url", "a server that runs with proxy and insecure", "none")
        for url in self.metrics_urls:
            _explained("metrics_urls", normalise_url, url)
        check_route(self.route, (*self.urls, *self.metrics_urls))

    @property
    def id(self) -> str:
        """Identity within the run: `ENGINE_MODEL_tpN`, its name, and its mode where that is not the study's first."""
        return cell_id(self.engine, self.model, self.tp, self.name, self.mode, self.side)

    @property
    def title(self) -> str:
        """What messages call it: its id; a side of a duel by its letter and its URL.

        >>> Cell(engine="vllm", model="m", base_url="http://10.0.0.1:8000", side="b").title
        'B (http://10.0.0.1:8000)'
        """
        return self.id if self.side is None or self.base_url is None else f"{self.side.upper()} ({self.base_url})"

    @property
    def urls(self) -> tuple[str, ...]:
        """Every server that it asks; none where it starts its own."""
        return self.base_urls or (() if self.base_url is None else (self.base_url,))

    @property
    def route(self) -> Route:
        """The way to its server."""
        return Route(proxy=self.proxy, insecure=self.insecure)

    @property
    def simulated(self) -> bool:
        """Is the engine our simulator? Its figures predict; they never measure an engine."""
        return self.engine.endswith("-sim")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchLimits:
    """How far a search for the largest concurrency goes. `requests`: measured requests after which a level is left
    undecided (None: by the SLOs and the level). `start`: the first level (None: predicted). `of`: what its levels are; of
    rates `max_concurrency` is the most in flight."""

    max_concurrency: int = 256
    requests: int | None = None
    start: int | None = None
    of: SearchedKind = "users"

    @property
    def most(self) -> int:
        """The highest level that it may try."""
        return self.max_concurrency if self.of == "users" else MOST_USERS

    def __post_init__(self) -> None:
        _whole("--max-concurrency", self.max_concurrency, most=MOST_USERS)
        _whole("--requests", 1 if self.requests is None else self.requests)
        most = self.most
        limit = f"1 to --max-concurrency {most}" if self.of == "users" else f"requests/s up to {most / 3600:.4g}"
        require(self.start is None or 1 <= self.start <= most, "--start", limit, self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What to measure: cells x levels x repeats, one workload, one contract.

    A pass over a level of C streams sends `max(min_requests, requests_per_stream * C)` measured requests, or as many as
    fit into `duration_s` where that is given; each stream sends `warmup_requests` before them. Before each
    pass no request is sent for `cooldown_s` (wall), so that GPUs cool down. `workers` processes of Locust share the streams.
    `mode` "decision": bursts at the lowest and the highest level tell which engine is faster, once for each engine and model
    after `natural_prompts` answers at `natural_users` tell the lengths; its conditions: docs/deciding.md.
    `prompts`: every level asks the first so many prompts in whole rounds; each round has a `cache_salt` of its own, and
    engines that do not know it ask on through the workload.
    `until_decided`: a pair of engines whose verdict is certain is not measured again; `repeats` is then the most.
    `matters`: the difference (a share) below which two engines are equal. `start_sd`: how much starts of a server are known
    to differ (a share). `search`: each cell is searched for the largest concurrency within `slo`, in place of `levels` and
    `repeats`. `scenario_options` are the scenario's own: `{rate = 0.5}` is its `--rate 0.5`. `unsaid`: which of `mode`,
    `repeats` and `until_decided` its file leaves open (`by_default`). `baseline`: name or id of the cell that others of its
    engine and deployment are held against (None: the first).
    """

    name: str
    workload: str
    cells: tuple[Cell, ...]
    question: str = ""
    scenario: str = CLOSED_LOOP
    scenario_options: dict[str, str | int | float | bool] = field(default_factory=dict)
    mode: Mode = "natural"
    levels: tuple[int, ...] = (1, 2, 4, 8)
    repeats: int = 1
    until_decided: bool = False
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
    start_sd: float | None = None
    findings: str | None = None
    contract: dict[str, Any] | None = None
    gpu_hour_price: float | None = None
    currency: str = "USD"
    search: SearchLimits | None = None
    unsaid: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        require(bool(self.cells), "cells", "at least one cell", "none")
        require(bool(self.levels) and min(self.levels) >= 1, "levels", "concurrencies from 1 up", self.levels)
        _whole("levels", max(self.levels), most=MOST_USERS)
        require(len(set(self.levels)) == len(self.levels), "levels", "each concurrency once", self.levels)
        ours = sorted(key for key in self.scenario_options if not _OPTION.fullmatch(key) or _OF_A_PASS.fullmatch(key))
        require(not ours, "scenario_options", "options of the scenario's own, as rate = 0.5", ", ".join(ours))
        secret = first_secret(self.scenario_options)
        require(secret is None, "scenario_options", "no key on a command line, where it would be recorded", secret)
        _whole("repeats", self.repeats, most=MOST_REPEATS)
        looked = not self.until_decided or self.repeats in LOOKS or self.is_duel
        require(looked, "repeats", f"{LOOKS[0]} to {LOOKS[-1]} with until_decided", self.repeats)
        _whole("prompts", 1 if self.prompts is None else self.prompts)
        asked_once = self.prompts is None or (not self.decides and self.scenario == "long_reasoning" and not self.duration_s)
        require(asked_once, "prompts", "none with another scenario, with duration_s or mode decision", self.prompts)
        _whole("natural_users", self.natural_users, most=MOST_USERS)
        _whole("natural_prompts", self.natural_prompts)
        plain = not self.decides or all(cell.api == "chat" for cell in self.cells)
        require(plain, "api", "chat with mode decision", "another")
        one = not self.decides or not any(cell.base_urls for cell in self.cells)
        require(one, "base_url", "one server with mode decision, as bursts are of one", "several")
        closed = not self.decides or (self.scenario == "long_reasoning" and self.duration_s is None)
        require(closed, "mode", "natural with another scenario or with duration_s", self.mode)
        _whole("requests_per_stream", self.requests_per_stream, least=0)
        _whole("min_requests", self.min_requests)
        _whole("warmup_requests", self.warmup_requests, least=0)
        require(0 <= self.cooldown_s < 1e8, "cooldown_s", "seconds from 0 up", self.cooldown_s)
        _whole("workers", self.workers, of="a number of processes", most=MOST_WORKERS)
        duration_s, price = self.duration_s, self.gpu_hour_price
        require(duration_s is None or 0 < duration_s < 1e8, "duration_s", "seconds above 0, and below 1e8", duration_s)
        require(price is None or 0 <= price < math.inf, "gpu_hour", "a price from 0 up", price)
        require(0 < self.matters < 1, "matters", "a share between 0 and 1, such as 0.05", self.matters)
        sd = self.start_sd
        require(sd is None or 0 <= sd < 1, "start_sd", "a share from 0 up and below 1, such as 0.01", sd)
        for objective in self.slo:
            _explained("slo", slos.parse_slo, objective)
        searched = self.search is not None
        require(not searched or bool(self.slo), "--slo", "at least one with a search, such as ttft_s:p90<2", "none")
        loop = CLOSED_LOOP if self.search is None or self.search.of == "users" else OPEN_LOOP
        require(not searched or self.scenario == loop, "scenario", f"{loop} with a search", self.scenario)
        alone = self.search is None or self.search.of == "users" or self.workers == 1
        require(alone, "workers", "1 with a search for a rate", self.workers)
        ids = [cell.id for cell in self.cells]
        twice = sorted({one for one in ids if ids.count(one) > 1})
        require(not twice, "cells", "each engine x model x tp once, or a name for each", ", ".join(twice))

    def requests(self, concurrency: int) -> int:
        """Measured requests in one pass over a level of this concurrency."""
        n = max(self.min_requests, self.requests_per_stream * concurrency)
        return n if self.prompts is None else self.prompts * math.ceil(n / self.prompts)

    @property
    def compares(self) -> bool:
        """Does it start two engines or more for one model on the same GPUs?"""
        engines = {(cell.model, cell.tp, cell.gpu, cell.mode, cell.engine) for cell in self.cells if cell.base_url is None}
        places = [one[:-1] for one in engines]
        return len(set(places)) < len(places)

    @property
    def decides(self) -> bool:
        """Is the question which engine is faster, answered by bursts?"""
        return self.mode == "decision"

    @property
    def is_duel(self) -> bool:
        """Do two servers that run already take turns, so that a repeat is a round?"""
        return any(cell.side is not None for cell in self.cells)

    @property
    def turn(self) -> str:
        """What messages call a repeat."""
        return "round" if self.is_duel else "repeat"

    @property
    def lengths(self) -> LengthMode:
        """How the outputs of its natural passes end."""
        return "equal-work" if self.mode == "equal-work" else "natural"

    @property
    def simulated(self) -> bool:
        """Does any figure of this study come from a simulated engine?"""
        return any(cell.simulated for cell in self.cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedPass:
    """One pass of a cell. `requests`: measured ones (None: as many as the study's duration allows). `contexts_tokens`: of
    bursts. `most_in_flight`: of a level of a search for a rate, where `concurrency` stands for requests per hour."""

    concurrency: int
    requests: int | None = None
    warmup_requests: int = 0
    contexts_tokens: tuple[int, ...] = ()
    most_in_flight: int | None = None

    @property
    def of(self) -> SearchedKind:
        """What its concurrency stands for."""
        return "users" if self.most_in_flight is None else "requests/h"

    @property
    def kind(self) -> PassKind:
        return "bursts" if self.contexts_tokens else "level"

    def name(self, repeat: int) -> str:
        """Its folder."""
        return level_name(self.concurrency, repeat, self.kind)


def of_servers(urls: Sequence[str]) -> dict[str, Any]:
    """Fields of a cell with these servers.

    >>> of_servers(["http://a:1", "http://b:1"])
    {'base_url': 'http://a:1', 'base_urls': ('http://a:1', 'http://b:1')}
    """
    require(len(urls) > 0, "base_url", "a URL, or a list of them", "none")
    return {"base_url": urls[0], "base_urls": tuple(urls) if len(urls) > 1 else ()}


def _check_env(env: Mapping[str, str]) -> None:
    """Variables for an engine: no key of ours, and from now on no secret among them is written or printed."""
    wrong = next((name for name in env if not VARIABLE.fullmatch(name)), None)
    require(wrong is None, "env", "names of variables, as VLLM_USE_V1", wrong)
    key = next((name for name in env if name in WITHHELD), None)
    require(key is None, "env", "no key of a server, as a server of ours listens on 127.0.0.1 alone", key)
    broken = next((name for name, value in env.items() if "\0" in value), None)
    require(broken is None, "env", "values without NUL", broken)
    hide_secrets(env)


def require(holds: bool, key: str, expected: str, got: object) -> None:
    if not holds:
        raise UsageError(f"{key}: expected {expected}, got {got}")


def _whole(key: str, n: int, *, least: int = 1, most: int = MOST_REQUESTS, of: str = "a number") -> None:
    require(least <= n, key, f"{of} from {least} up", n)
    require(n <= most, key, f"at most {most:,}", n)


def _explained(key: str, check: Callable[[str], object], value: str) -> None:
    """Have another module check a value, and name our key in its message."""
    try:
        check(value)
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from None


def select(study: Study, only: list[str]) -> Study:
    """Keep the cells and levels that match every `KEY=VALUE`: the keys of `_ONLY`, and what the study varies."""

    def told(cell: Cell) -> str:
        if key in cell.factors:
            return cell.factors[key]
        return str({"cell": cell.id, "mode": cell.mode or study.mode}.get(key) or getattr(cell, key, None))

    cells, levels = study.cells, study.levels
    known = (*_ONLY, *dict.fromkeys(factor for cell in cells for factor in cell.factors))
    for condition in only:
        key, equals, value = condition.partition("=")
        if not equals or key not in known:
            raise UsageError(f"--only {condition}: expected KEY=VALUE with a key of {', '.join(known)}")
        if key == "concurrency":
            levels = tuple(level for level in levels if str(level) == value)
        else:
            cells = tuple(cell for cell in cells if told(cell) == value)
    if not cells or not levels:
        raise UsageError(f"--only {' '.join(only)}: expected at least one cell and level of the study, none is left")
    return replace(study, cells=cells, levels=levels)


TYPICAL_STARTS = 3  # of each engine: what a grid repeats, and what a decision takes as a rule


def in_mode(study: Study, mode: Mode) -> Study:
    """The study in another mode: a grid with three repeats, or a decision with at most six.

    >>> study = Study(name="s", workload="math", cells=(Cell(engine="vllm", model="qwq-32b"),))
    >>> in_mode(study, "decision").repeats, in_mode(in_mode(study, "decision"), "natural").until_decided
    (6, False)
    """
    decides, cells = mode == "decision", tuple(cell for cell in study.cells if cell.mode is None)
    repeats = LOOKS[-1] if decides else max(TYPICAL_STARTS, 1 if study.decides else study.repeats)
    prompts = None if decides else study.prompts
    return replace(study, mode=mode, cells=cells, repeats=repeats, until_decided=decides, prompts=prompts)


def by_default(study: Study) -> Study:
    """The study as `loadtest run` takes it: one that compares and says no mode decides, with at most six repeats, unless it
    asks for what bursts have not: another scenario or endpoint, a duration, rounds of prompts, forced lengths, outputs of a
    form, or configurations of an engine.

    >>> cells = (Cell(engine="vllm", model="qwq-32b"), Cell(engine="sglang", model="qwq-32b"))
    >>> by_default(Study(name="s", workload="math", cells=cells, unsaid=frozenset({"mode", "repeats"}))).mode
    'decision'
    """
    natural = study.scenario != CLOSED_LOOP or study.duration_s is not None or study.prompts is not None
    natural = natural or study.mode != "natural" or any(cell.api != "chat" for cell in study.cells)
    natural = natural or is_formed(study.workload)
    configured = any(cell.name is not None for cell in study.cells)
    if "mode" not in study.unsaid or natural or configured or not study.compares:
        return study
    repeats = LOOKS[-1] if "repeats" in study.unsaid else study.repeats
    until_decided = repeats in LOOKS if "until_decided" in study.unsaid else study.until_decided
    return replace(study, mode="decision", repeats=repeats, until_decided=until_decided)


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
