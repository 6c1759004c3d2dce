"""What a search asks of one level; and which levels it will try, if the first is the frontier."""

from __future__ import annotations

from dataclasses import replace

from loadtest.analysis.search.level_test import most_requests
from loadtest.decision.search_steps import Word, next_level
from loadtest.metrics.slo import parse_slo
from loadtest.study.schema import AskedPass, Study

PER_HOUR_S = 3600.0


def search_pass(study: Study, level: int, requests: int | None = None) -> AskedPass:
    """A pass over a level of so many requests; None: as many as it may have in all."""
    search = study.search
    assert search is not None
    most = search.requests or most_requests([parse_slo(text) for text in study.slo], level, search.of)
    return AskedPass(
        concurrency=level,
        requests=most if requests is None else requests,
        warmup_requests=study.warmup_requests,
        most_in_flight=None if search.of == "users" else search.max_concurrency,
    )


def study_of_pass(study: Study, asked: AskedPass, repeat: int = 1) -> Study:
    """The study whose only level this pass is; each repeat asks in another order: what the prefix cache of a server that is
    not flushed holds would seem fast."""
    level = asked.concurrency
    seed = study.seed + 1000 * repeat + level
    alone = replace(study, levels=(level,), min_requests=asked.requests or 1, seed=seed)
    if asked.most_in_flight is None:
        return alone
    return replace(alone, scenario_options=study.scenario_options | {"rate": level / PER_HOUR_S}, requests_per_stream=0)


def foreseen_levels(start: int, most: int) -> list[int]:
    """The levels of a search, in order, if `start` is the largest within the SLOs.

    >>> foreseen_levels(12, 256), foreseen_levels(4, 4)
    ([12, 24, 18, 15, 13], [4])
    """
    words: dict[int, Word] = {}
    while (level := next_level(words, start, most)) is not None:
        words[level] = "within" if level <= start else "broken"
    return list(words)
