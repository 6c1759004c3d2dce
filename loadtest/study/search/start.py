"""Where a search begins: the largest concurrency that the performance model expects within the SLOs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from loadtest.metrics.slo import Slo, parse_slo
from loadtest.perfmodel.prediction import PredictedRange, Prediction, predict
from loadtest.study import estimate
from loadtest.study.schema import CLOSED_LOOP, Cell, Study
from loadtest.study.search.asked import PER_HOUR_S
from loadtest.workload.contract import Contract
from loadtest.workload.workload import Workload

DEFAULT_START = 8
DEFAULT_PER_HOUR = 360

_PREDICTED: Mapping[str, Callable[[Prediction], PredictedRange | None]] = {
    "ttft_s": lambda one: one.ttft_s,
    "tpot_s": lambda one: one.tpot_s,
    "itl_s": lambda one: one.tpot_s,
    "tokens_per_s_per_user": lambda one: one.tokens_per_s_per_user,
    "time_to_final_answer_s": lambda one: one.time_to_final_answer_s,
    "output_tokens_per_s": lambda one: one.output_tokens_per_s,
}


class Start(NamedTuple):
    """The first level of a search, and where it is from, in words."""

    level: int
    source: str


def start_of(study: Study, cell: Cell, workload: Workload, contract: Contract) -> Start:
    """The level asked for; else the largest predicted within the SLOs that the model knows; else 8."""
    assert study.search is not None
    most = study.search.max_concurrency
    if study.search.of != "users":
        return _start_of_rates(study, cell, workload, contract)
    if study.search.start is not None:
        return Start(min(study.search.start, most), "as asked")
    slos = [slo for slo in map(parse_slo, study.slo) if slo.metric in _PREDICTED]
    contract = replace(contract, mode=cell.mode or contract.mode)
    deployment = estimate.deployment_of(cell, contract) if slos else None
    if deployment is None:
        return Start(min(DEFAULT_START, most), "no prediction: GPU, model or SLO unknown to it")
    prompt, output = estimate.mean_tokens(cell, workload.prompts, contract)

    def holds(level: int) -> bool:
        predicted = predict(deployment, prompt_tokens=prompt, output_tokens=output, concurrency=level)
        return predicted.running_streams >= level and _holds(slos, predicted)

    return Start(_largest(holds, most), f"predicted {'by ' + cell.calibration if cell.calibration else 'by the model'}")


def _start_of_rates(study: Study, cell: Cell, workload: Workload, contract: Contract) -> Start:
    """The rate asked for; else what the concurrency that is predicted within the SLOs ends; else 0.1 requests/s."""
    assert study.search is not None
    if study.search.start is not None:
        return Start(study.search.start, "as asked")
    closed = replace(study, scenario=CLOSED_LOOP, search=replace(study.search, of="users"))
    users = start_of(closed, cell, workload, contract)
    contract = replace(contract, mode=cell.mode or contract.mode)
    deployment = estimate.deployment_of(cell, contract)
    if deployment is None or not users.source.startswith("predicted"):
        return Start(DEFAULT_PER_HOUR, users.source)
    prompt, output = estimate.mean_tokens(cell, workload.prompts, contract)
    predicted = predict(deployment, prompt_tokens=prompt, output_tokens=output, concurrency=users.level)
    answer_s = predicted.time_to_final_answer_s
    if answer_s is None:
        return Start(DEFAULT_PER_HOUR, "no prediction of the time to final answer")
    return Start(max(1, int(PER_HOUR_S * users.level / answer_s.value)), users.source)


def _holds(slos: Sequence[Slo], predicted: Prediction) -> bool:
    found = [(slo, _PREDICTED[slo.metric](predicted)) for slo in slos]
    return all(figure is None or slo.holds(figure.value) for slo, figure in found)


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """The largest level that holds, if all below the first that does not hold do; at least 1.

    >>> _largest(lambda level: level <= 23, 256)
    23
    """
    low, high = 1, 2
    while high <= most and holds(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
