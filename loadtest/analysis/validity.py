"""Can a run be relied on: complete, load generator healthy, server in agreement, outputs as long as they were forced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from loadtest.metrics.level_schema import ComposedLevel, EqualWork, GateStatus, LevelFigures
from loadtest.metrics.schema import CellFigures, RunHealth
from loadtest.records.imported import Imported
from loadtest.records.manifest import Manifest
from loadtest.records.schema import FINISHED, RequestRecord, TokenCountSource

_COUNTERS: tuple[TokenCountSource, ...] = ("chunks", "tool", "tokenizer", "server")  # the least reliable first
_STATUSES: tuple[GateStatus, ...] = ("fail", "not_checked", "pass", "not_applicable")  # the worst first


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why the figures of one level of one cell cannot be relied on."""

    cell: str
    concurrency: int
    reason: str

    def __str__(self) -> str:
        return f"{self.cell} at {self.concurrency}: {self.reason}"


def equal_work(records: Iterable[RequestRecord]) -> EqualWork:
    """Did every forced output come out as long as it was forced, and had each prompt the length that it was made to have?

    Population: measured requests with a forced length that the server ended by itself and counted. A request that broke or
    was cut off has a forced length too, but its output says nothing of whether the engine keeps to it.
    """
    ended = [r for r in records if r.outcome in FINISHED and r.token_count_source == "server"]
    outputs = [(r, r.completion_tokens, r.forced_tokens) for r in ended if r.forced_tokens is not None]
    prompts = [
        (r, r.prompt_tokens, r.asked_prompt_tokens)
        for r in ended
        if r.asked_prompt_tokens is not None and r.prompt_tokens is not None
    ]
    found = (
        _unequal("output lengths differ from the forced length", outputs),
        _unequal("prompts differ from theirs", prompts),
    )
    reasons = tuple(filter(None, found))
    status: Literal["pass", "fail", "not_applicable"] = "fail" if reasons else "pass" if outputs else "not_applicable"
    return EqualWork(status=status, reasons=reasons, n_forced=len(outputs), n_prompts=len(prompts))


def _unequal(what: str, rows: Sequence[tuple[RequestRecord, int | None, int | None]]) -> str | None:
    """How many of these lengths (request, got, wanted) differ, with the first; None where none does."""
    wrong = [row for row in rows if row[1] != row[2]]
    if not wrong:
        return None
    first, got, wanted = min(wrong, key=lambda row: row[0].seq)
    example = f"first: {first.prompt_id}, {got} tokens instead of {wanted}"
    return f"{len(wrong)} of {len(rows)} {what} ({example}): not equal work"


def judge_run(
    cells: Sequence[CellFigures], manifest: Manifest, templates: Iterable[str] = (), missing: Sequence[str] = ()
) -> RunHealth:
    """May the run be relied on? `templates`: cells that were given different prompts (`comparability.templates`), in words.

    A record that was torn, as its writer was killed in mid-line, is missing: such a run is not complete.
    """
    levels = [level for cell in cells for level in cell.levels]
    bursts = [level for cell in cells for level in cell.composed]
    both: list[LevelFigures | ComposedLevel] = [*levels, *bursts]
    reasons = [str(doubt) for doubt in doubts(cells)]
    if manifest.imported is not None:
        reasons.append(f"imported, not verified: {manifest.tool} does not tell {'; '.join(untold(manifest.imported))}")
    if not manifest.complete:
        reasons.append(manifest.incomplete_reason or "the run did not finish")
    return RunHealth(
        client=_worst({one.client_health.status for one in both}),
        reconciliation=_worst({one.reconciliation.status for one in both}),
        complete=manifest.complete and not missing and not any(map(_damaged, both)),
        counted_by=next((one for one in _COUNTERS if any(one in level.token_count_sources for level in levels)), None),
        reasons=(*reasons, *missing, *templates),
        windows=tuple(str(doubt) for doubt in window_doubts(cells)),
    )


def untold(imported: Imported) -> tuple[str, ...]:
    """What the files of another tool do not hold."""
    return tuple(one.what for one in imported.not_told)


def doubts(cells: Iterable[CellFigures]) -> list[Doubt]:
    """What makes the figures of a level doubtful, level by level: why it is unsound, and which gates were not checked."""
    found: list[Doubt] = []
    for cell in cells:
        levels: list[LevelFigures | ComposedLevel] = [*cell.levels, *cell.composed]
        for level in levels:
            reasons = (*unsound_reasons(level), *_unchecked_reasons(level))
            found += [Doubt(cell.id, level.concurrency, reason) for reason in reasons]
    return found


def _damaged(level: LevelFigures | ComposedLevel) -> bool:
    return bool(level.damaged_files) or (isinstance(level, LevelFigures) and level.torn_lines > 0)


def unsound_reasons(level: LevelFigures | ComposedLevel) -> tuple[str, ...]:
    """Why no verdict may rest on a level, empty where one may: torn or damaged records, unequal work, token counts that
    cannot be right, a dead server of several, a load generator that may have distorted the figures, a server that does not
    agree."""
    failed = [gate for gate in (level.client_health, level.reconciliation) if gate.status == "fail"]
    return (
        *level.damaged_files,
        *(_of_answers(level) if isinstance(level, LevelFigures) else ()),
        *(reason for gate in failed for reason in gate.reasons or ("a check failed",)),
    )


def _of_answers(level: LevelFigures) -> tuple[str, ...]:
    torn = [f"{level.torn_lines} torn line(s) left out"] if level.torn_lines else []
    return (*torn, *level.equal_work.reasons, *level.token_counts.reasons, *dead_replicas(level))


def dead_replicas(level: LevelFigures) -> tuple[str, ...]:
    """Servers that took their turn and answered no request at all: the level is of fewer servers than its cell."""
    asked = [(one.source, one.asked) for one in level.server.replicas if one.asked is not None]
    return tuple(
        f"{source} answered none of its {figures.n_requests} requests ({', '.join(figures.error_kinds)})"
        for source, figures in asked
        if figures.failed_share.value == 1
    )


def _unchecked_reasons(level: LevelFigures | ComposedLevel) -> tuple[str, ...]:
    gates = (level.client_health, level.reconciliation)
    return tuple(reason for gate in gates if gate.status == "not_checked" for reason in gate.reasons)


def sound_levels(levels: Iterable[LevelFigures]) -> tuple[LevelFigures, ...]:
    """The levels that verdicts may rest on."""
    return tuple(level for level in levels if not unsound_reasons(level))


LevelPlace = tuple[str, int]  # a level: the id of its cell, and its concurrency


def unsound_places(cells: Iterable[CellFigures]) -> frozenset[LevelPlace]:
    """The levels that no verdict may rest on."""
    return frozenset((cell.id, level.concurrency) for cell in cells for level in cell.levels if unsound_reasons(level))


def window_doubts(cells: Iterable[CellFigures]) -> Iterator[Doubt]:
    """Steady windows that are too short, not steady or not warm."""
    for cell in cells:
        for level in cell.levels:
            found = {"long enough": level.checks.long_enough, "steady": level.checks.steady, "warm": level.checks.warm}
            if level.throughput_method == "renewal":
                del found["long enough"]  # such a window is not what tokens/s rest on
            for name, check in found.items():
                if check.status == "fail":
                    yield Doubt(cell.id, level.concurrency, f"{name}: {check.reason}")


def _worst(statuses: set[GateStatus]) -> GateStatus:
    return next((status for status in _STATUSES if status in statuses), "not_checked")
