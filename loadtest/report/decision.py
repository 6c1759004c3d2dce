"""The decision in words, for the page and the terminal: which runtime, which cards, how many users, at what cost.

Every sentence carries its interval or says that there is none. A simulated run only predicts, and its sentences say so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from loadtest.report import cells as views
from loadtest.report import formatting
from loadtest.report.cells import Cell
from loadtest.report.formatting import Estimate, Json

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


def question(metrics: Json, manifest: Json) -> str:
    """The study's own question, else one made of the runtimes and models that were asked for."""
    asked = manifest.get("question") or formatting.section(metrics, "run").get("question")
    if asked:
        return formatting.clean(asked)
    cells = views.cells(metrics)
    runtimes = list(dict.fromkeys(views.FAMILIES[cell.family] for cell in cells))
    models = listed(list(dict.fromkeys(cell.model for cell in cells)))
    if len(runtimes) > 1:
        return f"{' or '.join(runtimes)} for {models}: which is faster, and for how many users?"
    if runtimes:
        return f"How fast does {runtimes[0]} serve {models}, and for how many users?"
    return "Nothing was measured"


def listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "no model"


def simulated(metrics: Json) -> bool:
    """Is any figure of this run a prediction of the simulator?"""
    return bool(metrics.get("simulated")) or any(cell.simulated for cell in views.cells(metrics))


def lines(metrics: Json, manifest: Json) -> tuple[Line, ...]:
    """The decision, most important first; what cannot be said is said to be unknown and why."""
    cells = tuple(cell for cell in views.cells(metrics) if cell.levels)
    if not cells:
        return (Line("Result", "Nothing was measured", "No cell has a level with data; see what was not measured."),)
    found = [_runtime(metrics, cells), _configuration(cells), _users(cells, slos(metrics, manifest)), _cost(cells, manifest)]
    return tuple(line for line in found if line is not None)


# Which runtime -------------------------------------------------------------------------------------------------------


def _runtime(metrics: Json, cells: tuple[Cell, ...]) -> Line | None:
    rows = formatting.rows(metrics, "comparisons")
    if len({cell.family for cell in cells}) < 2 and not rows:
        return None
    for metric in DECIDING:
        chosen = [row for row in rows if row.get("metric") == metric]
        if any(formatting.estimate(row, "ratio").known for row in chosen):
            return _ahead(metrics, metric, chosen)
    return Line("Which runtime", "No verdict", "No pair of cells could be compared with an interval.")


def _ahead(metrics: Json, metric: str, chosen: list[Json]) -> Line:
    """Who was ahead in one metric, each pair of runtimes by itself."""
    by_id = {cell.id: cell for cell in views.cells(metrics)}
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
    cell = by_id.get(formatting.clean(row.get(side)))
    return views.FAMILIES[cell.family] if cell else formatting.clean(row.get(side))


def envelope(chosen: list[Json]) -> str:
    """The span of several ratios, and what all of their intervals lie between, in words."""
    ratios = [formatting.estimate(row, "ratio") for row in chosen]
    values = [e.value for e in ratios if e.value is not None]
    if not values:
        return "no ratio"
    ends = [end for e in ratios for end in (e.low, e.high) if end is not None]
    low, high = formatting.number(min(values)), formatting.number(max(values))
    text = f"ratio {low}" if low == high else f"ratios from {low} to {high}"
    if not ends:
        return f"{text}; no interval"
    outer = f"{formatting.number(min(ends))} to {formatting.number(max(ends))}"
    return f"{text} (95 % interval {outer})" if len(values) == 1 else f"{text} (95 % intervals within {outer})"


# Which configuration, how many users, what it costs ------------------------------------------------------------------


def _configuration(cells: tuple[Cell, ...]) -> Line | None:
    alone = _best(cells, "tokens_per_s_per_user", views.typical(cells, "tokens_per_s_per_user"))
    total = _best(cells, "output_tokens_per_s", "value")
    if alone is None and total is None:
        return Line("Which configuration", "No verdict", "No level has enough requests for a figure.")
    parts = []
    for best, which in ((alone, "for one user"), (total, "for all together")):
        if best is not None:
            cell, level, found = best
            where = f"{cell.runtime}, {cell.deployment}, {formatting.users(int(level['concurrency']))}"
            parts.append(f"{which}: {formatting.with_interval(found, 'tokens/s')} on {where}")
    best = alone or total
    assert best is not None
    only = len({cell.deployment for cell in cells}) == 1
    answer = f"Only {best[0].deployment} was measured" if only else best[0].deployment
    return Line("Which configuration", answer, f"Fastest {'; '.join(parts)}")


def _best(cells: Iterable[Cell], key: str, which: str) -> tuple[Cell, Json, Estimate] | None:
    found = [(cell, level, formatting.estimate(level, key, which)) for cell in cells for level in cell.levels]
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
        return formatting.clean(text)
    metric = match[1].replace("ttft_s", "time_to_first_token_s")
    unit = " s" if metric.endswith("_s") and "per_s" not in metric else ""
    name = metric.removesuffix("_s").replace("_", " ") if unit else metric.replace("_", " ")
    return f"{STATISTICS.get(match[2] or '', match[2] or '')} {name} {match[3]} {match[4]}{unit}".strip()


def slos(metrics: Json, manifest: Json) -> tuple[str, ...]:
    """The study's SLOs in words."""
    found = formatting.section(metrics, "run").get("slo") or manifest.get("slo") or ()
    return tuple(slo_words(str(text)) for text in found) if isinstance(found, (list, tuple)) else ()


def _users(cells: tuple[Cell, ...], wanted: tuple[str, ...]) -> Line:
    asks, slo = "How many users", "; ".join(wanted)
    if not wanted:
        because = "Without an SLO (slo in a study, --slo of attach) no number of users can be called too many."
        return Line(asks, "No limit was set", because)
    met = [(n, sure(cell), cell) for cell in cells if (n := formatting.finite(cell.maximum.get("by_slo")))]
    if not met:
        return Line(asks, "No level is shown to be within the SLO", f"SLO: {slo}. {_binding(cells)}.")
    n, certain, cell = max(met, key=lambda row: (row[0], row[1]))
    tried = "; more were not tried" if n == cell.levels[-1].get("concurrency") else ""
    known = f"up to {certain}" if certain else "at no level"
    because = f"{cell.runtime}, {cell.deployment}; with the whole 95 % interval {known}. SLO: {slo}."
    return Line(asks, f"{formatting.users(int(n))} within the SLO{tried}", because)


def sure(cell: Cell) -> int:
    """The highest level up to which every SLO is met with its whole 95 % interval; 0 where none is."""
    ends = cell.maximum.get("ci95")
    return int(formatting.finite(ends[0]) or 0) if isinstance(ends, (list, tuple)) and ends else 0


def _binding(cells: tuple[Cell, ...]) -> str:
    bound = {slo_words(str(cell.maximum["binds"])) for cell in cells if cell.maximum.get("binds")}
    return f"Not met, or too few requests to tell: {'; '.join(sorted(bound))}" if bound else "Too few requests to tell"


def cost_per_1000_answers(cell: Cell, level: Json, gpu_hour_price: float) -> Estimate:
    """Price of 1000 finished answers: price of a card-hour x cards x 1000 / answers per hour; the interval is inverted."""
    rate = formatting.estimate(level, "answers_per_hour")
    hour = 1000 * gpu_hour_price * cell.tp
    if not rate.value:
        return formatting.UNKNOWN
    return Estimate(
        hour / rate.value, hour / rate.high if rate.high else None, hour / rate.low if rate.low else None, rate.n
    )


def price(manifest: Json) -> tuple[float | None, str]:
    """Price of one card for an hour, and its currency."""
    prices = formatting.section(manifest, "prices")
    value = formatting.finite(prices.get("gpu_hour", manifest.get("gpu_hour_price")))
    return value, formatting.clean(prices.get("currency") or manifest.get("currency") or "")


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
    users = formatting.users(int(level["concurrency"]))
    where = f"{cell.runtime}, {cell.deployment}, {users}, at {value:g} {currency} a card-hour"
    return Line(
        "What it costs",
        f"{formatting.number(found.value)} {currency} for 1000 answers",
        f"Lowest of all levels, 95 % interval {span_or_none(found)}; {where}",
    )


def span_or_none(found: Estimate) -> str:
    return formatting.span(found) or "not known"
