"""The search of one cell: which level next, how many requests more, and when to stop. Live and in virtual time alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from msgspec.structs import replace

from loadtest.analysis.level import level_figures
from loadtest.analysis.search.level_test import LevelTest, least_requests, most_requests, order_of
from loadtest.analysis.search.result import search_level
from loadtest.decision.search_steps import Word, frontier, next_level
from loadtest.metrics.level_schema import LevelFigures
from loadtest.metrics.request_arrays import Pass, earliest_anchor, pass_arrays
from loadtest.metrics.schema import SearchLevel, SearchObjective
from loadtest.metrics.slo import Slo, parse_slo
from loadtest.records.engine_facts import EngineFacts, SearchedKind, SearchFacts
from loadtest.records.read import LevelRecords
from loadtest.report.formatting import place_of
from loadtest.study.engine_file import EngineFile
from loadtest.study.execution import Say
from loadtest.study.schema import Study
from loadtest.study.search.start import Start


class Driver(Protocol):
    """What measures: Locust against a server, or the simulator in virtual time."""

    def tried(self) -> Sequence[int]:
        """The levels that have passes, in order."""
        ...

    def on_disk(self, level: int) -> Sequence[LevelRecords]:
        """The passes over a level that are whole."""
        ...

    def so_far(self, level: int) -> Sequence[LevelRecords]:
        """The same with the one that runs."""
        ...

    def measure(self, level: int, requests: int, test: LevelTest) -> None:
        """One pass more, of so many requests, or until `test` is certain."""
        ...

    def is_out_of_time(self) -> bool: ...


def cell_search(study: Study, begun: Start, engine: EngineFile, driver: Driver, say: Say) -> CellSearch:
    """The search of the cell of `engine`, whose engine.json keeps its facts as they become known."""
    assert study.search is not None

    def learn(facts: SearchFacts) -> None:
        engine.learn(search=facts)
        engine.write()

    most, of = study.search.most, study.search.of
    facts = SearchFacts(start=begun.level, start_source=begun.source, most=most, most_source="max_concurrency", of=of)
    learn(facts)
    say(f"{engine.facts.id}: the search begins at {spoken_level(begun.level, of)} ({begun.source})")
    return CellSearch(
        cell_id=engine.facts.id,
        objectives=[parse_slo(text) for text in study.slo],
        facts=facts,
        requests=study.search.requests,
        driver=driver,
        say=say,
        learn=learn,
        kv_tokens=_kv_tokens(engine.facts) if of == "users" else None,
    )


def _kv_tokens(facts: EngineFacts) -> int | None:
    """Tokens that the KV cache holds: as the server says, else by the arithmetic of its memory."""
    told = (facts.server_info or {}).get("kv_cache_tokens")
    return told or (facts.fit.kv_capacity_tokens if facts.fit is not None else 0) or None


@dataclass(slots=True)
class CellSearch:
    """The state of a search. `kv_tokens`: what the KV cache holds, where that is known. `learn`: keeps changed facts."""

    cell_id: str
    objectives: Sequence[Slo]
    facts: SearchFacts
    requests: int | None
    driver: Driver
    say: Say
    learn: Callable[[SearchFacts], None]
    kv_tokens: int | None = None
    words: dict[int, Word] = field(default_factory=dict)

    def carry_out(self) -> None:
        """Try level after level until the frontier is found, the time is over, or the user interrupts."""
        for level in self._known_levels():
            self._judge(level)
        while (following := next_level(self.words, self.facts.start, self.facts.most)) is not None:
            if not self._decide(following):
                self._note(replace(self.facts, stopped="the budget is spent"))
                break
        edge = frontier(self.words)
        self.say(f"{self.cell_id}: {between_words(edge.within, edge.broken, self.facts.of)}")

    def _known_levels(self) -> Sequence[int]:
        """Levels of an earlier attempt that need no more requests."""
        return [level for level in self.driver.tried() if self._is_over(level, self.driver.on_disk(level))]

    def _is_over(self, level: int, passes: Sequence[LevelRecords]) -> bool:
        if not passes:
            return False
        found = self._found(passes)
        return found.verdict != "undecided" or self._left(level, found.n_requests) < self._each(level)

    def _each(self, level: int) -> int:
        """Fewest requests that a pass over a level may have."""
        return least_requests(level, self.facts.of)

    def _left(self, level: int, taken: int) -> int:
        return (self.requests or most_requests(self.objectives, level, self.facts.of)) - taken

    def _decide(self, level: int) -> bool:
        """Measure a level until it is decided or has had its requests; False where the time is over."""
        while not self._is_over(level, passes := self.driver.on_disk(level)):
            if self.driver.is_out_of_time():
                return False
            order = order_of(self.facts.of)
            test = LevelTest(self.objectives, self._each(level), lambda: self._figures(self.driver.so_far(level)), order)
            for columns in _columns(passes):
                test.take_all(columns)
            taken = sum(_measured(one) for one in passes)
            self.driver.measure(level, max(self._left(level, taken), self._each(level)), test)
        self._judge(level)
        return True

    def _judge(self, level: int) -> None:
        passes = self.driver.on_disk(level)
        found = self._found(passes)
        self.words[level] = found.verdict
        self.say(f"{self.cell_id} at {place_of(level, self.facts.of)}  {level_words(found)}")
        self._cap(passes)

    def _found(self, passes: Sequence[LevelRecords]) -> SearchLevel:
        figures = self._figures(passes)
        assert figures is not None
        return search_level(_columns(passes), self.objectives, figures, self.facts.of)

    def _figures(self, passes: Sequence[LevelRecords]) -> LevelFigures | None:
        if not passes:
            return None
        pairs = list(zip(passes, _columns(passes), strict=True))
        return level_figures(pairs, (), earliest_anchor(passes), False, None, "", of=self.facts.of)

    def _cap(self, passes: Sequence[LevelRecords]) -> None:
        """No level above what the KV cache holds, by the lengths seen."""
        streams = None if self.kv_tokens is None else _streams(self.kv_tokens, passes)
        if streams is not None and streams < self.facts.most:
            most = max(streams, *self.words)
            self._note(replace(self.facts, most=most, most_source="kv_cache"))

    def _note(self, facts: SearchFacts) -> None:
        self.facts = facts
        self.learn(facts)


def _columns(passes: Sequence[LevelRecords]) -> list[Pass]:
    anchor = earliest_anchor(passes)
    return [pass_arrays(one, anchor) for one in passes]


def _measured(one: LevelRecords) -> int:
    return sum(record.phase == "measure" for record in one.requests)


def _streams(kv_tokens: int, passes: Sequence[LevelRecords]) -> int | None:
    """Requests under way that the KV cache holds at a random moment: prompt + E[L^2] / 2 E[L] tokens each, as a longer
    answer is met more often."""
    known = [
        (record.prompt_tokens, record.completion_tokens)
        for one in passes
        for record in one.requests
        if record.prompt_tokens is not None and record.completion_tokens
    ]
    if not known:
        return None
    prompts, outputs = np.array(known, np.float64).T
    return max(1, int(kv_tokens / (np.mean(prompts) + np.mean(outputs**2) / (2 * np.mean(outputs)))))


# In words ------------------------------------------------------------------------------------------------------------


def spoken_level(level: int, of: SearchedKind) -> str:
    """
    >>> spoken_level(8, "users"), spoken_level(900, "requests/h")
    ('8 users', '0.25 requests/s')
    """
    return f"{level} users" if of == "users" else f"{level / 3600:.4g} requests/s"


def between_words(within: int, broken: int | None, of: SearchedKind = "users") -> str:
    """
    >>> between_words(12, 16), between_words(0, 1)
    ('12 users are within the SLOs, 16 are not', 'not even 1 user is within the SLOs')
    >>> between_words(900, 1080, "requests/h")
    '0.25 requests/s are within the SLOs, 0.3 requests/s are not'
    """
    if of != "users":
        said = f"{spoken_level(within, of)} are within the SLOs" if within else "no rate is surely within the SLOs"
        return said + ("" if broken is None else f", {spoken_level(broken, of)} are not")
    if within == 0:
        return "no level is within the SLOs" if broken is None else f"not even {broken} user is within the SLOs"
    return f"{within} users are within the SLOs" + ("" if broken is None else f", {broken} are not")


def level_words(found: SearchLevel) -> str:
    """One level on the progress line."""
    return f"{found.n_requests:>4} requests: {found.verdict}; {progress_words(found.objectives)}"


def progress_words(objectives: Sequence[SearchObjective]) -> str:
    """What is known of each SLO: the share within it, with its interval, and the share needed."""
    return "; ".join(map(_objective_words, objectives))


def _objective_words(one: SearchObjective) -> str:
    value = one.figure.value
    low, high = one.figure.low, one.figure.high
    if value is None or low is None or high is None:
        return f"{one.slo}: not known yet"
    if one.of_requests:
        share = f"{100 * value:.3g} % [{100 * low:.3g}, {100 * high:.3g}]"
        return f"{one.slo}: {share} of requests, {100 * one.needed:g} % needed"
    return f"{one.slo}: {value:.3g} [{low:.3g}, {high:.3g}]"
