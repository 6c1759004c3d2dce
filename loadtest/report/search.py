"""A search in words and tables: the answer, what bound it, and every level tried."""

from __future__ import annotations

from collections.abc import Sequence

from loadtest.metrics.schema import ConcurrencySearch, Metrics, SearchLevel, SearchObjective
from loadtest.records.engine_facts import SearchedKind
from loadtest.report.formatting import DASH, RATE, clean, count, load_text, number
from loadtest.report.plots.figure import Table


def search_answer(found: ConcurrencySearch) -> str:
    """The answer of one cell, in a few words."""
    n, broken, binds = found.within, found.broken, clean(found.binds or "an SLO")
    if found.of != "users":
        return _rate_answer(found, binds)
    if broken is None:
        return f"at least {_users(n)}" if n else "not known: no level was decided"
    if n == 0:
        return f"none shown: {_users(broken)} {'breaks' if broken == 1 else 'break'} {binds}"
    return f"at most {_users(n)}; {broken} breaks {binds}" if found.limit == "slo" else (
        f"{n} to {broken - 1} users; {broken} breaks {binds}"
    )  # fmt: skip


def _rate_answer(found: ConcurrencySearch, binds: str) -> str:
    within = f"{load_text(found.within, found.of)} requests/s"
    if found.broken is None:
        return f"at least {within}" if found.within else "not known: no rate was decided"
    high = load_text(found.broken, found.of)
    if not found.within:
        return f"none shown: {high} break {binds}"
    known = within if found.limit == "slo" else f"{load_text(found.within, found.of)} to {high} requests/s"
    return f"{known}; {high} break {binds}"


def search_basis(found: ConcurrencySearch) -> str:
    """What ended the search, and what it cost."""
    minutes = "" if found.gpu_minutes is None else f", {number(found.gpu_minutes)} {_minutes(found)}"
    cost = f"{len(found.levels)} levels, {count(found.n_requests)} requests{minutes}"
    began = f"begun at {load_text(found.start, found.of)} ({clean(found.start_source)})"
    ended = _ended(found)
    return f"{ended[:1].upper()}{ended[1:]}; {began}; {cost}"


def _minutes(found: ConcurrencySearch) -> str:
    return "simulated GPU-minutes" if found.simulated else "GPU-minutes"


def _ended(found: ConcurrencySearch) -> str:
    undecided = [load_text(one.concurrency, found.of) for one in found.levels if one.verdict == "undecided"]
    if found.limit == "stopped":
        return f"stopped early: {clean(found.reason or 'interrupted')}; --resume goes on"
    if found.limit == "undecided":
        return f"undecided at {', '.join(undecided)}: more --requests and --resume would tell"
    if found.limit == "max_concurrency":
        return f"not searched above {load_text(found.most, found.of)}{' (--max-concurrency)' if found.of == 'users' else ''}"
    if found.limit == "kv_cache":
        return f"not searched above {found.most}, which fill the KV cache"
    return "every level has a 95 % interval on one side of each SLO"


def _users(n: int) -> str:
    return f"{n} user{'' if n == 1 else 's'}"


def search_rows(found: ConcurrencySearch) -> list[tuple[str, ...]]:
    """Each level tried: concurrency, verdict, requests, minutes, and each SLO with its interval."""
    return [_row(one, found.of) for one in found.levels]


def _row(one: SearchLevel, of: SearchedKind) -> tuple[str, ...]:
    level, minutes = load_text(one.concurrency, of), number(one.load_s / 60)
    return (level, one.verdict, count(one.n_requests), minutes, *map(_objective, one.objectives))


def _objective(one: SearchObjective) -> str:
    value, low, high = one.figure.value, one.figure.low, one.figure.high
    if value is None or low is None or high is None:
        return DASH
    if one.of_requests:
        value, low, high = 100 * value, 100 * low, 100 * high
    return f"{number(value)} [{number(low)}, {number(high)}]{' %' if one.of_requests else ''}"


def search_head(found: ConcurrencySearch) -> tuple[str, ...]:
    slos = [clean(one.slo) for one in found.levels[0].objectives] if found.levels else []
    return ("users" if found.of == "users" else RATE, "verdict", "requests", "minutes", *slos)


def search_table(metrics: Metrics) -> Table | None:
    """All searches of a run; None where it has none that tried a level."""
    tried = [one for one in metrics.searches if one.levels]
    if not tried:
        return None
    rows = [(clean(one.cell), *row) for one in tried for row in search_rows(one)]
    return Table(("cell", *search_head(tried[0])), tuple(rows), (_NOTE,))


_NOTE = (
    "In the order tried. Of each SLO: the share of requests within its limit, with an interval that holds although the level"
    " was looked at after every request; or, for a limit on another figure, that figure."
)


def search_text(searches: Sequence[ConcurrencySearch]) -> list[str]:
    """For the terminal: of each cell the answer and the levels."""
    text = []
    for one in searches:
        rows = [search_head(one), *search_rows(one)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(f"{text:>{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        text += [f"{clean(one.cell)}: {search_answer(one)}", *(f"  {line}" for line in table), ""]
    return text
