"""`engine.json` of one cell, from its start to its end."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from loadtest.records import write
from loadtest.records.engine_facts import EngineFacts, MemoryFit
from loadtest.study.plan import fit_of
from loadtest.study.schema import Cell
from loadtest.workload.contract import Contract


class EngineFile:
    """`engine.json` of one cell while its facts become known."""

    def __init__(self, run: Path, facts: EngineFacts) -> None:
        self.facts = facts
        self._path = run / "cells" / facts.id / "engine.json"

    def learn(self, **facts: object) -> None:
        self.facts = msgspec.structs.replace(self.facts, **facts)

    def exists(self) -> bool:
        """Did an earlier start of the cell leave it?"""
        return self._path.exists()

    def write(self) -> None:
        write.write_sealed(self._path, self.facts)


def starting(cell: Cell) -> EngineFacts:
    """The facts of a cell's engine before it starts."""
    return EngineFacts(
        id=cell.id,
        engine=cell.engine,
        model=cell.model,
        tp=cell.tp,
        gpu=cell.gpu,
        gpus=cell.gpus,
        mode=cell.mode,
        name=cell.name,
        factors=cell.factors,
        args=cell.args,
        simulated=cell.simulated,
        clock_speed=cell.clock_speed or 1.0,
        base_url=cell.base_url,
        base_urls=cell.base_urls,
        insecure=cell.insecure,
        side=cell.side,
        status="starting",
        started_unix_s=time.time(),
    )


def memory_fit(cell: Cell, contract: Contract) -> MemoryFit | None:
    """The arithmetic of a cell's memory, for engine.json; None where the GPU is not known."""
    found = fit_of(cell, contract)
    return None if found is None else msgspec.convert(found, MemoryFit, from_attributes=True)
