"""The figures of a run as rows of metrics.csv and as OpenMetrics, and its requests as a pandas frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from loadtest.metrics.catalogue import CENSORED_METRICS, DISTRIBUTION_STATISTICS, METRICS, Statistic
from loadtest.metrics.level_schema import LevelFigures
from loadtest.metrics.request_arrays import Pass, earliest_anchor, pass_arrays, per_request
from loadtest.metrics.schema import CellFigures, Metrics
from loadtest.records.read import LevelRecords, Run
from loadtest.records.schema import RequestRecord

if TYPE_CHECKING:
    import pandas as pd

CsvRow = dict[str, str | float | int | bool | None]


def to_rows(metrics: Metrics) -> list[CsvRow]:
    """metrics.csv: one row for each cell x level x metric x statistic; a figure that is missing keeps its row, with n."""
    return [row for cell in metrics.cells for level in cell.levels for row in _rows(cell, level)]


def _rows(cell: CellFigures, level: LevelFigures) -> Iterator[CsvRow]:
    for name, metric in METRICS.items():
        statistics: tuple[Statistic, ...] = ("value",) if metric.shape == "estimate" else DISTRIBUTION_STATISTICS
        for statistic in statistics:
            found = level.estimate(name, statistic)
            yield {
                "cell": cell.id, "engine": cell.engine, "model": cell.model, "tp": cell.tp, "gpu": cell.gpu,
                "simulated": cell.simulated, "concurrency": level.concurrency, "metric": name, "statistic": statistic,
                "value": found.value, "ci95_low": found.low, "ci95_high": found.high, "n": found.n,
            }  # fmt: skip


_LABELS = ("cell", "engine", "model", "tp", "gpu", "concurrency", "simulated", "statistic")


def to_openmetrics(metrics: Metrics) -> str:
    """The same figures as OpenMetrics gauges: `loadtest_KEY`, and the ends of its 95 % interval as `loadtest_KEY_ci95_low`
    and `_high`. A figure that is missing has no line. Raises ImportError without prometheus-client."""
    from prometheus_client import CollectorRegistry, Gauge
    from prometheus_client.openmetrics.exposition import generate_latest

    registry, gauges = CollectorRegistry(), dict[str, Gauge]()
    for row in to_rows(metrics):
        for column, ending in (("value", ""), ("ci95_low", "_ci95_low"), ("ci95_high", "_ci95_high")):
            value, name = row[column], f"loadtest_{row['metric']}{ending}"
            if isinstance(value, float | int):
                about = METRICS[str(row["metric"])].definition
                gauge = gauges.get(name) or gauges.setdefault(name, Gauge(name, about, _LABELS, registry=registry))
                gauge.labels(*(str(row[label]) for label in _LABELS)).set(value)
    return bytes(generate_latest(registry)).decode()  # type: ignore[no-untyped-call]


def to_frame(run: Run) -> pd.DataFrame:
    """One row for each request, all phases, times in seconds since the run's earliest anchor (`sent_s`, `ended_s`) or since
    `sent_s` (the rest); `*_exact` false where a figure is right-censored. Missing is NaN, as pandas has it."""
    import pandas as pd

    anchor = earliest_anchor([level for cell in run.cells for level in cell.levels])
    parts = [
        _frame(level, pass_arrays(level, anchor), cell.engine.predicts)
        for cell in run.cells
        for level in cell.levels
        if level.requests
    ]
    whole: pd.DataFrame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*_FRAME, "simulated"])
    return whole


_FRAME = ("cell", "concurrency", "repeat", "phase", "worker", "user", "seq", "prompt_id", "outcome", "finish_reason",
          "prompt_tokens", "completion_tokens", "answer_correct", "form_valid")  # fmt: skip
_PLAIN_METRICS = tuple(name for name, metric in METRICS.items() if metric.shape == "plain")


def _frame(level: LevelRecords, columns: Pass, simulated: bool) -> pd.DataFrame:
    import pandas as pd

    answer: pd.DataFrame = pd.DataFrame({name: [_fact(r, level, name) for r in columns.records] for name in _FRAME})
    answer["simulated"] = simulated
    answer["sent_s"], answer["ended_s"], answer["tokens"] = columns.sent_s, columns.ended_s, columns.tokens
    for metric in CENSORED_METRICS:
        answer[metric], answer[f"{metric}_exact"] = per_request(columns, metric)
    for metric in _PLAIN_METRICS:
        answer[metric] = per_request(columns, metric)[0]
    return answer


def _fact(record: RequestRecord, level: LevelRecords, name: str) -> object:
    return level.cell if name == "cell" else getattr(record, name)
