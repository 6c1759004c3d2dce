"""Which passes a study asks of a cell in one repeat.

Over the workload at each level; or, to decide, bursts at the lowest and the highest level (at every level, where SLOs or
published claims ask about them), and once for each engine and model a natural run.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from loadtest.analysis.bursts.composed import decision_levels
from loadtest.errors import UsageError
from loadtest.study import plan
from loadtest.study.schema import AskedPass, Cell, Study
from loadtest.workload.bursts import BurstPlan, contexts_within
from loadtest.workload.contract import Contract
from loadtest.workload.script import SALTED, Rounds


def rounds_of(study: Study, cell: Cell, asked: AskedPass, repeat: int) -> Rounds | None:
    """The rounds of a pass over the workload, where the study has one set of prompts and the engine tells rounds apart."""
    if study.prompts is None or asked.kind == "bursts" or cell.engine not in SALTED:
        return None
    return Rounds(study.prompts, asked.name(repeat), math.ceil((asked.requests or 0) / study.prompts))


def burst_levels(study: Study) -> tuple[int, ...]:
    """The concurrencies of a study's bursts."""
    return tuple(sorted(study.levels)) if study.slo or study.findings else decision_levels(study.levels)


def natural_passes(study: Study) -> list[AskedPass]:
    """One repeat over the workload: every level; of a study that decides those which its bursts would stand for."""
    levels = burst_levels(study) if study.decides else study.levels
    timed = study.duration_s is not None
    return [
        AskedPass(
            concurrency=level,
            requests=None if timed else study.requests(level),
            warmup_requests=study.warmup_requests,
        )
        for level in levels
    ]


def burst_passes(study: Study, contract: Contract, cell: Cell, room_tokens: int | None = None) -> list[AskedPass]:
    """Bursts of one start."""
    return [burst_pass(study, contract, cell, level, room_tokens) for level in burst_levels(study)]


def natural_run(
    study: Study, contract: Contract, cell: Cell, room_tokens: int | None = None, *, with_bursts: bool = True
) -> list[AskedPass]:
    """The natural run of an engine and model, after bursts of its concurrency, which it is held against. `with_bursts`: the
    same start has the cell's bursts too."""
    users = study.natural_users
    if with_bursts and users in burst_levels(study):
        beside = []
    else:
        whole = burst_pass(study, contract, cell, users, room_tokens)
        beside = [_of_contexts(users, whole.contexts_tokens[:2])]  # where natural contexts are
    return [*beside, AskedPass(concurrency=users, requests=study.natural_prompts)]


def burst_pass(study: Study, contract: Contract, cell: Cell, level: int, room_tokens: int | None = None) -> AskedPass:
    """Bursts at one concurrency, of contexts that every engine of the same deployment holds.

    `room_tokens`: the context that the server says it serves. Raises UsageError where there is no room for bursts.
    """
    rivals = [one for one in study.cells if (one.model, one.tp, one.gpu) == (cell.model, cell.tp, cell.gpu)]
    rooms = [known for one in rivals if (known := plan.context_tokens(one, contract)) is not None]
    fits = [fit for one in rivals if (fit := plan.fit_of(one, contract)) is not None and fit.fits]
    contexts = contexts_within(
        min([*rooms, *([] if room_tokens is None else [room_tokens])], default=None),
        level,
        min((fit.kv_capacity_tokens for fit in fits), default=None),
    )
    return _of_contexts(level, contexts)


def _of_contexts(level: int, contexts_tokens: tuple[int, ...]) -> AskedPass:
    requests = BurstPlan(concurrency=level, contexts_tokens=contexts_tokens).requests
    return AskedPass(concurrency=level, requests=requests, contexts_tokens=contexts_tokens)


def natural_cells(study: Study, contract: Contract, blocked: Collection[str] = ()) -> set[str]:
    """The cells with a natural run: of each engine, configuration and model the one on the most GPUs that can start."""
    chosen: dict[tuple[str, str | None, str], Cell] = {}
    for cell in study.cells:
        fit = plan.fit_of(cell, contract)
        if cell.id in blocked or (fit is not None and not fit.fits):
            continue
        known = chosen.get((cell.engine, cell.name, cell.model))
        if known is None or cell.tp > known.tp:
            chosen[cell.engine, cell.name, cell.model] = cell
    return {cell.id for cell in chosen.values()}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the next repeat measures, by cell id: bursts, natural passes in their place, natural runs. `nearest`: the cells
    of each question that is open, the one that the fewest starts would decide first."""

    bursts: frozenset[str] = frozenset()
    levels: frozenset[str] = frozenset()
    natural: frozenset[str] = frozenset()
    nearest: tuple[frozenset[str], ...] = ()

    @property
    def cells(self) -> frozenset[str]:
        return self.bursts | self.levels | self.natural

    def only(self, cells: frozenset[str]) -> Wanted:
        """Of these cells alone."""
        return replace(self, bursts=self.bursts & cells, levels=self.levels & cells, natural=self.natural & cells)

    def passes(self, study: Study, contract: Contract, cell: Cell, room_tokens: int | None = None) -> list[AskedPass]:
        """The passes of one start of a cell, in order."""
        found = burst_passes(study, contract, cell, room_tokens) if cell.id in self.bursts else []
        if cell.id in self.natural:
            found += natural_run(study, contract, cell, room_tokens, with_bursts=cell.id in self.bursts)
        taken = {(one.concurrency, one.kind) for one in found}
        if cell.id in self.levels:
            found += [one for one in natural_passes(study) if (one.concurrency, one.kind) not in taken]
        return found


def first_wanted(study: Study, contract: Contract, blocked: Collection[str] = ()) -> Wanted:
    """What the first repeat measures."""
    ids = frozenset(cell.id for cell in study.cells)
    if not study.decides:
        return Wanted(levels=ids)
    return Wanted(bursts=ids, natural=frozenset(natural_cells(study, contract, blocked)))


def check_room(study: Study, contract: Contract) -> None:
    """Raise UsageError where a cell that fits has no room for its bursts."""
    for cell in study.cells:
        fit = plan.fit_of(cell, contract)
        if fit is None or fit.fits:
            try:
                natural_run(study, contract, cell)
                burst_passes(study, contract, cell)
            except UsageError as error:
                raise UsageError(f"levels: {cell.id}: {error}") from None
