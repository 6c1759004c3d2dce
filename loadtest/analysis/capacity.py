"""How many replicas and cards hold so many users, or so many answers an hour, under SLOs; and what an answer then costs.

From the levels of metrics.json, measured or simulated alike. Every figure comes with what it would be at the careful and at
the hopeful end of the intervals. Rules and formulas: docs/capacity.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.analysis.objectives import maximum_concurrency
from loadtest.errors import UsageError
from loadtest.metrics import slo

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Demand:
    """What has to be held: `users` requests in flight at any time, or else `answers_per_hour` finished ones.

    `headroom` is the share of each replica that is kept free, `gpu_hour_price` the price of one card for an hour.
    """

    users: int | None = None
    answers_per_hour: float | None = None
    headroom: float = 0.2
    gpu_hour_price: float | None = None

    def __post_init__(self) -> None:
        if (self.users is None) == (self.answers_per_hour is None):
            raise UsageError("plan: expected one of --users U and --answers-per-hour N, got both or neither")
        if not (self.users or self.answers_per_hour or 0) > 0:
            raise UsageError("plan: expected a number of users or answers above 0")
        if not 0 <= self.headroom < 1:
            raise UsageError(f"--headroom: expected a share from 0 to below 1, such as 0.2, got {self.headroom:g}")
        if self.gpu_hour_price is not None and not 0 <= self.gpu_hour_price < math.inf:
            raise UsageError(f"--gpu-hour-price: expected a price from 0 up, got {self.gpu_hour_price:g}")


@dataclass(frozen=True, slots=True)
class Replica:
    """What one replica is taken to hold: streams, and answers and output tokens an hour with that many."""

    streams: int
    answers: float
    tokens: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """How many replicas hold a demand, and the answers and tokens an hour that they then deliver."""

    replicas: int
    answers: float
    tokens: float


def fleet(demand: Demand, one: Replica) -> Fleet:
    """Replicas = ceil(demand / (what one holds x (1 - headroom))); delivered is what was asked for, not what could be.

    >>> fleet(Demand(users=40), Replica(streams=8, answers=160.0, tokens=80_000.0))
    Fleet(replicas=7, answers=800.0, tokens=400000.0)
    """
    held, asked = (one.streams, demand.users) if demand.users is not None else (one.answers, demand.answers_per_hour)
    assert asked is not None
    load = asked / held
    replicas = math.ceil(load / (1 - demand.headroom) - 1e-9)
    return Fleet(replicas, load * one.answers, load * one.tokens)


def plan(cells: Sequence[Json], objectives: Sequence[slo.Slo], demand: Demand) -> list[dict[str, Any]]:
    """One option a cell, cheapest first (fewest cards where no price is given), those that hold nothing last.

    `replicas`, `cards`, `cost_per_hour`, `cost_per_1000_answers`, `cost_per_million_output_tokens`: `{value, ci95}`, the
    ends from the level that meets every SLO for certain with the low end of its rate, and from the highest level that is
    not certainly broken with the high end; an end that nothing bounds is null. `streams_per_replica` likewise, and
    `limit`, `binds` as `slo.maximum_concurrency` has them. Raises UsageError without an objective.
    """
    if not objectives:
        raise UsageError("--slo: expected at least one, such as time_to_final_answer_s:p90<120; got none, nor has the run")
    options = [_option(cell, objectives, demand) for cell in cells]
    return sorted(options, key=_rank)


def _rank(option: Json) -> tuple[bool, float, float, str]:
    cards, cost = option["cards"]["value"], option["cost_per_1000_answers"]["value"]
    return cards is None, cards or 0.0, cost or 0.0, option["cell"]


def _option(cell: Json, objectives: Sequence[slo.Slo], demand: Demand) -> dict[str, Any]:
    found = maximum_concurrency(cell["levels"], objectives, cell["fit"])
    low, high = found["ci95"] or (None, None)
    typical, careful, hopeful = (
        _replica(cell, streams, end) for streams, end in ((found["by_slo"], None), (low, 0), (high, 1))
    )
    cases = [None if one is None else fleet(demand, one) for one in (typical, hopeful, careful)]
    tp, price = int(cell["tp"] or 1), demand.gpu_hour_price
    return {
        **{key: cell[key] for key in ("engine", "model", "tp", "gpu", "simulated")},
        "cell": cell["id"],
        "streams_per_replica": {"value": found["by_slo"], "ci95": found["ci95"]},
        "limit": found["limit"],
        "binds": found["binds"],
        "streams_by_kv_cache": found["by_kv_workload"],
        "replicas": _figure(cases, lambda one: one.replicas),
        "cards": _figure(cases, lambda one: one.replicas * tp),
        "cost_per_hour": _cost(cases, price, lambda one: one.replicas * tp),
        "cost_per_1000_answers": _cost(cases, price, lambda one: 1000 * one.replicas * tp / one.answers),
        "cost_per_million_output_tokens": _cost(cases, price, lambda one: 1e6 * one.replicas * tp / one.tokens),
        "joules_per_answer": _joules(cell, found["by_slo"]),
        "reason": cell["reason"] or found["reason"] or _why_none(found, typical),
    }


def _replica(cell: Json, streams: int | None, end: int | None) -> Replica | None:
    """A replica that holds so many streams, by the figures of that level (`end` null) or an end of their intervals."""
    level = next((one for one in cell["levels"] if one["concurrency"] == streams), None)
    if level is None:
        return None
    found = [level["answers_per_hour"], level["output_tokens_per_s"]]
    answers, tokens = (one["value"] if end is None else (one["ci95"] or (None, None))[end] for one in found)
    return Replica(int(level["concurrency"]), answers, 3600 * tokens) if answers and tokens else None


def _figure(cases: Sequence[Fleet | None], of: Callable[[Fleet], float]) -> dict[str, Any]:
    """`{value, ci95}` of a fleet's figure: typical, and from the hopeful to the careful end."""
    value, low, high = (None if one is None else of(one) for one in cases)
    return {"value": value, "ci95": None if low is None and high is None else [low, high]}


def _cost(cases: Sequence[Fleet | None], price: float | None, cards: Callable[[Fleet], float]) -> dict[str, Any]:
    if price is None:
        return {"value": None, "ci95": None, "reason": "no price of a card-hour was given"}
    return _figure(cases, lambda one: price * cards(one))


def _joules(cell: Json, streams: int | None) -> dict[str, Any]:
    level = next((one for one in cell["levels"] if one["concurrency"] == streams), None)
    return {"value": None, "ci95": None} if level is None else dict(level["joules_per_answer"])


def _why_none(found: Json, typical: Replica | None) -> str | None:
    if found["by_slo"] == 0:
        return f"not even the lowest level meets {found['binds']}"
    return "no answer arrived inside the steady window" if typical is None else None
