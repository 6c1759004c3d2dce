"""The figures of a run as rows of metrics.csv and as a pandas frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loadtest.analysis.level import DISTRIBUTIONS, FIGURES, PLAIN, WAITS
from loadtest.metrics import distributions
from loadtest.metrics.request_arrays import Pass, earliest_anchor, per_request, read
from loadtest.records.read import LevelRecords, Run
from loadtest.records.schema import RequestRecord

if TYPE_CHECKING:
    import pandas as pd


def to_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """metrics.csv: one row for each cell x level x metric x statistic; null figures keep their row, with n."""
    rows = []
    for cell in metrics["cells"]:
        named = {"cell": cell["id"], **{key: cell[key] for key in ("engine", "model", "tp", "gpu", "simulated")}}
        for level in cell["levels"]:
            start = {**named, "concurrency": level["concurrency"]}
            rows += [{**start, **row} for name in DISTRIBUTIONS for row in _statistics(name, level[name])]
            rows += [{**start, **_row(name, "value", level[name], level[name]["ci95"])} for name in FIGURES]
    return rows


def _statistics(name: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = ("mean", *distributions.QUANTILES, "min", "max")
    return [_row(name, statistic, found, found["ci95"].get(statistic)) for statistic in names]


def _row(name: str, statistic: str, found: Mapping[str, Any], interval: Sequence[float] | None) -> dict[str, Any]:
    low, high = interval or (None, None)
    return {
        "metric": name, "statistic": statistic, "value": found[statistic],
        "ci95_low": low, "ci95_high": high, "n": found.get("n", 0),
    }  # fmt: skip


def to_frame(run: Run) -> pd.DataFrame:
    """One row a request, all phases, times in seconds since the run's earliest anchor (`sent_s`, `ended_s`) or since
    `sent_s` (the rest); `*exact_values` false where a figure is right-censored. Missing is NaN, as pandas has it."""
    import pandas as pd

    anchor = earliest_anchor([level for cell in run.cells for level in cell.levels])
    parts = [
        _frame(level, read(level, anchor), cell.engine.predicts)
        for cell in run.cells
        for level in cell.levels
        if level.requests
    ]
    whole: pd.DataFrame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*_FRAME, "simulated"])
    return whole


_FRAME = ("cell", "concurrency", "repeat", "phase", "worker", "user", "seq", "prompt_id", "outcome", "finish_reason",
          "prompt_tokens", "completion_tokens", "answer_correct")  # fmt: skip


def _frame(level: LevelRecords, columns: Pass, simulated: bool) -> pd.DataFrame:
    import pandas as pd

    facts: dict[str, Any] = {name: [_fact(r, level, name) for r in columns.records] for name in _FRAME}
    facts["simulated"] = simulated
    facts |= {"sent_s": columns.sent_s, "ended_s": columns.ended_s, "tokens": columns.tokens}
    for metric in (*WAITS, *PLAIN):
        facts[metric], exact = per_request(columns, metric)
        if metric in WAITS:
            facts[f"{metric}exact_values"] = exact
    answer: pd.DataFrame = pd.DataFrame(facts)
    return answer


def _fact(record: RequestRecord, level: LevelRecords, name: str) -> Any:
    return level.cell if name == "cell" else getattr(record, name)
