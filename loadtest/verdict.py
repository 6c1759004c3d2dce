"""The decision in words, for the page and the terminal: which runtime, which cards, how many users, at what cost.

Every sentence carries its interval or says that there is none. A simulated run only predicts, and its sentences say so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from loadtest import view
from loadtest.view import Cell, Estimate, Json

DECIDING = ("time_to_final_answer_s", "output_tokens_per_s", "tokens_per_s_per_user")
NAMES = {
    "time_to_final_answer_s": "time to final answer",
    "output_tokens_per_s": "total tokens/s",
    "tokens_per_s_per_user": "tokens/s per user",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One part of the decision: what it answers, the answer in a few words, and the figure behind it with its interval."""

    asks: str
    answer: str
    because: str


@dataclass(frozen=True, slots=True)
class Check:
    """One gate of the run's health; `state` is pass, fail, unknown, or none where there was nothing to check."""

    name: str
    state: str
    words: str


def question(metrics: Json, manifest: Json) -> str:
    """The study's own question, else one made of the runtimes and models that were asked for."""
    asked = manifest.get("question") or view.section(metrics, "run").get("question")
    if asked:
        return view.clean(asked)
    cells = view.cells(metrics)
    runtimes = list(dict.fromkeys(view.FAMILIES[cell.family] for cell in cells))
    models = _listed(list(dict.fromkeys(cell.model for cell in cells)))
    if len(runtimes) > 1:
        return f"{' or '.join(runtimes)} for {models}: which is faster, and for how many users?"
    if runtimes:
        return f"How fast does {runtimes[0]} serve {models}, and for how many users?"
    return "Nothing was measured"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "no model"


def simulated(metrics: Json) -> bool:
    """Is any figure of this run a prediction of the simulator?"""
    return bool(metrics.get("simulated")) or any(cell.simulated for cell in view.cells(metrics))


def lines(metrics: Json, manifest: Json) -> tuple[Line, ...]:
    """The decision, most important first; what cannot be said is said to be unknown and why."""
    cells = tuple(cell for cell in view.cells(metrics) if cell.levels)
    if not cells:
        return (Line("Result", "Nothing was measured", "No cell has a level with data; see what was not measured."),)
    found = [_runtime(metrics, cells), _configuration(cells), _users(cells, slos(metrics, manifest)), _cost(cells, manifest)]
    return tuple(line for line in found if line is not None)


# Which runtime -------------------------------------------------------------------------------------------------------


def _runtime(metrics: Json, cells: tuple[Cell, ...]) -> Line | None:
    rows = view.rows(metrics, "comparisons")
    if len({cell.family for cell in cells}) < 2 and not rows:
        return None
    for metric in DECIDING:
        chosen = [row for row in rows if row.get("metric") == metric]
        if any(view.estimate(row, "ratio").known for row in chosen):
            return _ahead(metrics, metric, chosen)
    return Line("Which runtime", "No verdict", "No pair of cells could be compared with an interval.")


def _ahead(metrics: Json, metric: str, chosen: list[Json]) -> Line:
    """Who was ahead in one metric, each pair of runtimes by itself."""
    by_id = {cell.id: cell for cell in view.cells(metrics)}
    pairs: dict[tuple[str, str], list[Json]] = {}
    for row in chosen:
        pairs.setdefault((_name(by_id, row, "a"), _name(by_id, row, "b")), []).append(row)
    ratios = [f"{first} / {second}: {envelope(rows)}" for (first, second), rows in pairs.items()]
    because = f"{NAMES[metric].capitalize()}, {'; '.join(ratios)}"
    if simulated(metrics):
        alike = "The simulator treats the runtimes alike where no difference between them is known"
        return Line("Which runtime", "Not for a simulation to say", f"{alike}. {because}")
    answers = [ahead(first, second, rows, several=len(pairs) > 1) for (first, second), rows in pairs.items()]
    return Line("Which runtime", ". ".join(answers), because)


def ahead(first: str, second: str, rows: list[Json], *, several: bool = False) -> str:
    """Who was ahead in how many of these comparisons, in words; `several`: other pairs stand beside this one."""
    n, found = len(rows), Counter(str(row.get("verdict")) for row in rows)
    ties = found["no detectable difference"]
    unjudged = n - ties - found["faster"] - found["slower"]
    rest = [f"{unjudged} could not be judged"] if 0 < unjudged < n else []
    if ties and ties + unjudged == n:
        between = f" between {first} and {second}" if several else ""
        return "; ".join([f"No detectable difference{between} in {ties} of {n} comparisons", *rest])
    sides = [(first, second, found["faster"]), (second, first, found["slower"])]
    said = [
        f"{one} was ahead{f' of {other}' if several else ''} in {count} of {n} comparisons"
        for one, other, count in sorted(sides, key=lambda side: -side[2])
        if count
    ]
    said[1:] = [text.replace(f" of {n} comparisons", "") for text in said[1:]]
    said += [f"no detectable difference in {ties}"] if ties else []
    return "; ".join([*said, *rest]) or f"No verdict in {n} comparisons"


def _name(by_id: dict[str, Cell], row: Json, side: str) -> str:
    cell = by_id.get(view.clean(row.get(side)))
    return view.FAMILIES[cell.family] if cell else view.clean(row.get(side))


def envelope(chosen: list[Json]) -> str:
    """The span of several ratios, and what all of their intervals lie between, in words."""
    ratios = [view.estimate(row, "ratio") for row in chosen]
    values = [e.value for e in ratios if e.value is not None]
    if not values:
        return "no ratio"
    ends = [end for e in ratios for end in (e.low, e.high) if end is not None]
    low, high = view.number(min(values)), view.number(max(values))
    text = f"ratio {low}" if low == high else f"ratios from {low} to {high}"
    if not ends:
        return f"{text}; no interval"
    outer = f"{view.number(min(ends))} to {view.number(max(ends))}"
    return f"{text} (95 % interval {outer})" if len(values) == 1 else f"{text} (95 % intervals within {outer})"


# Which configuration, how many users, what it costs ------------------------------------------------------------------


def _configuration(cells: tuple[Cell, ...]) -> Line | None:
    alone = _best(cells, "tokens_per_s_per_user", view.typical(cells, "tokens_per_s_per_user"))
    total = _best(cells, "output_tokens_per_s", "value")
    if alone is None and total is None:
        return Line("Which configuration", "No verdict", "No level has enough requests for a figure.")
    parts = []
    for best, which in ((alone, "for one user"), (total, "for all together")):
        if best is not None:
            cell, level, found = best
            where = f"{cell.runtime}, {cell.deployment}, {view.users(int(level['concurrency']))}"
            parts.append(f"{which}: {view.with_interval(found, 'tokens/s')} on {where}")
    best = alone or total
    assert best is not None
    only = len({cell.deployment for cell in cells}) == 1
    answer = f"Only {best[0].deployment} was measured" if only else best[0].deployment
    return Line("Which configuration", answer, f"Fastest {'; '.join(parts)}")


def _best(cells: Iterable[Cell], key: str, which: str) -> tuple[Cell, Json, Estimate] | None:
    found = [(cell, level, view.estimate(level, key, which)) for cell in cells for level in cell.levels]
    known = [row for row in found if row[2].known]
    return max(known, key=lambda row: row[2].value or 0.0) if known else None


STATISTICS = {f"p{n}": f"{n}th percentile of" for n in (90, 95, 99)} | {"p50": "median of", "mean": "mean"}


def slo_words(text: str) -> str:
    """An SLO as a person says it.

    >>> slo_words("ttft_s:p90<2")
    '90th percentile of time to first token < 2 s'
    """
    match = re.fullmatch(r"(\w+?)(?::(\w+))?([<>])([0-9.eE+-]+)", text.replace(" ", ""))
    if match is None:
        return view.clean(text)
    metric = match[1].replace("ttft_s", "time_to_first_token_s")
    unit = " s" if metric.endswith("_s") and "per_s" not in metric else ""
    name = metric.removesuffix("_s").replace("_", " ") if unit else metric.replace("_", " ")
    return f"{STATISTICS.get(match[2] or '', match[2] or '')} {name} {match[3]} {match[4]}{unit}".strip()


def slos(metrics: Json, manifest: Json) -> tuple[str, ...]:
    """The study's SLOs in words."""
    found = view.section(metrics, "run").get("slo") or manifest.get("slo") or ()
    return tuple(slo_words(str(text)) for text in found) if isinstance(found, (list, tuple)) else ()


def _users(cells: tuple[Cell, ...], wanted: tuple[str, ...]) -> Line:
    asks, slo = "How many users", "; ".join(wanted)
    if not wanted:
        because = "Without an SLO (slo in a study, --slo of attach) no number of users can be called too many."
        return Line(asks, "No limit was set", because)
    met = [(n, sure(cell), cell) for cell in cells if (n := view.finite(cell.maximum.get("by_slo")))]
    if not met:
        return Line(asks, "No level is shown to be within the SLO", f"SLO: {slo}. {_binding(cells)}.")
    n, certain, cell = max(met, key=lambda row: (row[0], row[1]))
    tried = "; more were not tried" if n == cell.levels[-1].get("concurrency") else ""
    known = f"up to {certain}" if certain else "at no level"
    because = f"{cell.runtime}, {cell.deployment}; with the whole 95 % interval {known}. SLO: {slo}."
    return Line(asks, f"{view.users(int(n))} within the SLO{tried}", because)


def sure(cell: Cell) -> int:
    """The highest level up to which every SLO is met with its whole 95 % interval; 0 where none is."""
    ends = cell.maximum.get("ci95")
    return int(view.finite(ends[0]) or 0) if isinstance(ends, (list, tuple)) and ends else 0


def _binding(cells: tuple[Cell, ...]) -> str:
    bound = {slo_words(str(cell.maximum["binds"])) for cell in cells if cell.maximum.get("binds")}
    return f"Not met, or too few requests to tell: {'; '.join(sorted(bound))}" if bound else "Too few requests to tell"


def cost_per_1000_answers(cell: Cell, level: Json, gpu_hour_price: float) -> Estimate:
    """Price of 1000 finished answers: price of a card-hour x cards x 1000 / answers per hour; the interval is inverted."""
    rate = view.estimate(level, "answers_per_hour")
    hour = 1000 * gpu_hour_price * cell.tp
    if not rate.value:
        return view.UNKNOWN
    return Estimate(
        hour / rate.value, hour / rate.high if rate.high else None, hour / rate.low if rate.low else None, rate.n
    )


def price(manifest: Json) -> tuple[float | None, str]:
    """Price of one card for an hour, and its currency."""
    prices = view.section(manifest, "prices")
    value = view.finite(prices.get("gpu_hour", manifest.get("gpu_hour_price")))
    return value, view.clean(prices.get("currency") or manifest.get("currency") or "")


def _cost(cells: tuple[Cell, ...], manifest: Json) -> Line:
    value, currency = price(manifest)
    if value is None:
        return Line(
            "What it costs",
            "No price was given",
            "Name that of a card-hour: gpu_hour in a study's prices, or plan --from RUN.",
        )
    costs = [(cost_per_1000_answers(cell, level, value), cell, level) for cell in cells for level in cell.levels]
    known = [row for row in costs if row[0].known]
    if not known:
        return Line("What it costs", "Not known", "No level finished enough answers.")
    found, cell, level = min(known, key=lambda row: row[0].value or 0.0)
    where = (
        f"{cell.runtime}, {cell.deployment}, {view.users(int(level['concurrency']))}, at {value:g} {currency} a card-hour"
    )
    return Line(
        "What it costs",
        f"{view.number(found.value)} {currency} for 1000 answers",
        f"Lowest of all levels, 95 % interval {span_or_none(found)}; {where}",
    )


def span_or_none(found: Estimate) -> str:
    return view.span(found) or "not known"


# What was not measured, and is the run sound -------------------------------------------------------------------------


def not_measured(metrics: Json, manifest: Json) -> tuple[str, ...]:
    """What this run does not tell, each with the reason."""
    found: list[str] = []
    asked = {int(level) for level in manifest.get("levels") or () if view.finite(level) is not None}
    absent: dict[str, list[str]] = {}
    for cell in view.cells(metrics):
        if not cell.levels:
            absent.setdefault(f"{cell.status}{': ' + cell.reason if cell.reason else ''}", []).append(cell.name)
        elif missing := sorted(asked - {int(one["concurrency"]) for one in cell.levels if one.get("n_requests") != 0}):
            found.append(f"{cell.name}: no data for {', '.join(map(str, missing))} concurrent users")
    found += [f"{_listed(names)}: {why}" for why, names in absent.items()]
    found += _unjudged(view.rows(metrics, "findings"))
    found += _thin(view.rows(metrics, "comparisons"))
    if simulated(metrics):
        found.append("Real hardware, real weights and the truth of any answer: the runtimes were simulated")
    return tuple(found)


def _unjudged(claims: list[Json]) -> list[str]:
    """The published claims that this run cannot judge; in one line where it can judge none of them."""
    open_ones = [row for row in claims if row.get("verdict") == "not_measured"]
    if len(open_ones) == len(claims) > 1:
        return [f"None of the {len(claims)} published claims: this run has none of the cells that they speak of"]
    return [f"Claim “{view.clean(row.get('claim'))}”: {view.clean(row.get('reason') or 'no data')}" for row in open_ones]


def _thin(rows: list[Json]) -> list[str]:
    kinds: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row.get("verdict") in ("too few samples", "not comparable"):
            kinds[str(row.get("verdict")), view.clean(row.get("reason") or "")] += 1
    return [
        f"{n} comparison{'' if n == 1 else 's'}: {verdict}{': ' + why if why else ''}" for (verdict, why), n in kinds.items()
    ]


def _failed(metrics: Json) -> str:
    """How many of all requests failed, in words; empty where none did."""
    counted = [
        (share * n, n)
        for cell in view.cells(metrics)
        for level in cell.levels
        if (share := view.finite(view.section(level, "failed_share").get("value"))) is not None
        and (n := view.finite(level.get("n_requests"))) is not None
    ]
    failed, asked = (sum(column) for column in zip(*counted, strict=True)) if counted else (0, 0)
    return f", but {failed:.0f} of {asked:.0f} requests failed" if failed else ""


def checks(metrics: Json, manifest: Json, engines: Mapping[str, Json] = MappingProxyType({})) -> tuple[Check, ...]:
    """The gates of the run: load generator, client against server, completeness, who counted the tokens where the server
    did not, and the contract where a runtime told its own."""
    health = view.section(metrics, "health")
    complete = metrics.get("complete", manifest.get("complete"))
    why = view.clean(manifest.get("incomplete_reason") or "the run ended early")
    ended = f"every cell and level has ended{_failed(metrics)}"
    whole = Check("Completeness", *_state(complete, ended, f"incomplete: {why}"))
    return (
        Check(
            "Load generator",
            *_state(health.get("client"), "it did not distort the figures", "it may have distorted the figures"),
        ),
        Check(
            "Client against server",
            *_state(
                health.get("reconciliation"),
                "tokens, requests and times to first token agree",
                "tokens, requests or times to first token disagree",
            ),
        ),
        whole,
        *_count_check(health.get("counted_by")),
        *_contract_check(engines),
    )


def _count_check(counted_by: Any) -> tuple[Check, ...]:
    """Who counted the tokens, where that was not the server."""
    if counted_by == "tokenizer":
        return (Check("Token counts", "pass", "by a local tokenizer, for the server told none"),)
    if counted_by == "chunks":
        words = "the server told none, so each chunk of text counts as one token; give --tokenizer to count them"
        return (Check("Token counts", "unknown", words),)
    return ()


def _contract_check(engines: Mapping[str, Json]) -> tuple[Check, ...]:
    """Did every runtime that tells its settings run as the contract wants it; nothing where none tells them."""
    told = {name: view.section(engine, "contract") for name, engine in engines.items()}
    if not any(told.values()):
        return ()
    wrong = {view.clean(name): violations(one) for name, one in told.items() if violations(one)}
    words = "; ".join(f"{name} {', '.join(keys)}" for name, keys in wrong.items())
    return (Check("Contract", *_state(not wrong, "every runtime ran as it was asked to", f"not as asked for: {words}")),)


def violations(contract: Json) -> tuple[str, ...]:
    """Keys of the contract that a runtime broke, by `contract.violations` of `engine.json`."""
    found = contract.get("violations")
    return tuple(view.clean(key).partition(":")[0] for key in found) if isinstance(found, (Mapping, list, tuple)) else ()


def _state(value: Any, good: str, bad: str) -> tuple[str, str]:
    value = value.get("status", value.get("verdict")) if isinstance(value, dict) else value
    if value in (True, "pass"):
        return "pass", good
    if value == "not_applicable":
        return "none", "fast-forwarded in virtual time, so there was none that could distort the figures"
    return ("fail", bad) if value in (False, "fail") else ("unknown", "not checked")


def health_reasons(metrics: Json, key: str = "reasons") -> tuple[str, ...]:
    """Every reason once, with all the places that it was given for: `CELL at 1, 2, 4: the fast clock ...`. `key`:
    `reasons` for what failed a gate, `windows` for doubts about the steady windows, which fail none."""
    reasons = view.section(metrics, "health").get(key)
    places: dict[tuple[str, str], list[str]] = {}
    for reason in reasons if isinstance(reasons, (list, tuple)) else ():
        where, at, what = re.match(r"(?:(.*?) at (\d+): )?(.*)", view.clean(reason), re.S).groups()  # type: ignore[union-attr]
        places.setdefault((where or "", what), []).append(at or "")
    return tuple(
        f"{where} at {', '.join(dict.fromkeys(at))}: {what}" if where else what for (where, what), at in places.items()
    )


def clock_error(metrics: Json) -> str:
    """What the fast clock of a simulation cost, in words; empty where it was not measured."""
    error = view.section(view.section(metrics, "run"), "clock_error")
    names = {"ttft_s": "time to first token", "tpot_s": "time per token", "time_to_final_answer_s": "time to final answer"}
    known = [(name, value) for key, name in names.items() if (value := view.finite(error.get(key))) is not None]
    shares = [f"{name} {value * 100:+.1f} %" for name, value in known]
    return f"{', '.join(shares)} (means over {view.count(error.get('n'))} requests)" if shares else ""
