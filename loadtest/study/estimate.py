"""How long a study will take, by the performance model: an estimate, for the plan and for the time remaining."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loadtest.client import thinking
from loadtest.perfmodel import gpus, machine_fit, memory, prediction
from loadtest.perfmodel.constants import Machine
from loadtest.report.formatting import spoken
from loadtest.servers import preflight
from loadtest.simulator.core import lengths
from loadtest.study import plan
from loadtest.study.schema import Cell, Study
from loadtest.workload.contract import Contract
from loadtest.workload.prompts import Prompt
from loadtest.workload.workload import Workload

TEMPLATE_TOKENS = 12
_CHARS_PER_TOKEN = 4
_PASS_START_S = 3.0  # wall: Locust starts, connects, and ends
_SIMULATOR_START_S = 2.0
_ENGINE_START_S = 60.0  # an engine's imports, compilation and captured graphs
_LOADING_BYTES_PER_S = 1e9  # weights, from a disk of its own
_EXPERT_PARALLEL = ("--enable-expert-parallel", "--ep-size", "--ep", "--expert-parallel")
_LENGTH_SCALE = "--length-scale"


@dataclass(frozen=True, slots=True)
class CellTime:
    """Wall seconds that a cell will take: one start, and one pass over each level; None where it cannot be foreseen."""

    start_s: float
    pass_s: dict[int, float | None]

    def all_s(self, repeats: int) -> float | None:
        """All passes, with a start for each repeat."""
        known = [one for one in self.pass_s.values() if one is not None]
        return (self.start_s + sum(known)) * repeats if len(known) == len(self.pass_s) else None


def of_cell(study: Study, cell: Cell, workload: Workload, contract: Contract) -> CellTime:
    """What the performance model expects of a cell: requests x tokens of output / tokens a second, over the clock's speed.

    Lengths are the workload's recorded ones, else those that the simulator draws, so that for an unknown model the time may
    be off several times over.
    """
    speed = cell.clock_speed or 1.0
    beside_s = study.cooldown_s + _PASS_START_S
    if study.duration_s is not None:
        return CellTime(_start_s(cell), dict.fromkeys(study.levels, study.duration_s / speed + beside_s))
    contract = replace(contract, mode=cell.mode or contract.mode)
    prompt_tokens, output_tokens = _mean_tokens(cell, workload.prompts, contract)
    rates = {level: _tokens_per_s(cell, contract, prompt_tokens, output_tokens, level) for level in study.levels}
    asked = {level: study.requests(level) + study.warmup_requests * level for level in study.levels}
    return CellTime(
        _start_s(cell),
        {
            level: None if rate is None else asked[level] * output_tokens / rate / speed + beside_s
            for level, rate in rates.items()
        },
    )


def _start_s(cell: Cell) -> float:
    if cell.base_url is not None:
        return 0.0
    if cell.simulated:
        return _SIMULATOR_START_S
    model = preflight.shape(cell.model)
    return _ENGINE_START_S + (model.weight_bytes / _LOADING_BYTES_PER_S if model is not None else 0.0)


def _mean_tokens(cell: Cell, prompts: Sequence[Prompt], contract: Contract) -> tuple[int, int]:
    """Mean prompt and output of the workload (tokens)."""
    pairs = request_tokens(cell, prompts, contract)
    prompt, output = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return round(prompt), max(1, round(output))


def request_tokens(cell: Cell, prompts: Sequence[Prompt], contract: Contract) -> list[tuple[int, int]]:
    """Prompt and output of each request of the workload (tokens): recorded lengths, else those that the simulator draws."""
    chars = [sum(len(message["content"]) for message in prompt.messages) for prompt in prompts]
    outputs = [_output_tokens(cell, prompt, contract) for prompt in prompts]
    pairs = zip(chars, outputs, strict=True)
    return [(round(n / _CHARS_PER_TOKEN) + TEMPLATE_TOKENS, max(1, output)) for n, output in pairs]


def _output_tokens(cell: Cell, prompt: Prompt, contract: Contract) -> int:
    forced = contract.forced_tokens(prompt)
    if forced is not None:
        return forced
    drawn = lengths.draw_lengths(prompt.id, contract.seed, scale=_length_scale(cell.args))
    thought = drawn.thinking_tokens if thinking.opens_in_prompt(cell.model) else 0
    return min(prompt.forced_tokens or thought + drawn.answer_tokens, contract.limit_tokens(prompt))


def _length_scale(args: Sequence[str]) -> float:
    """Of a simulator's arguments; 1 where they do not say, or wrongly."""
    try:
        return float(args[args.index(_LENGTH_SCALE) + 1]) if _LENGTH_SCALE in args else 1.0
    except (ValueError, IndexError):
        return 1.0


def _tokens_per_s(cell: Cell, contract: Contract, prompt_tokens: int, output_tokens: int, level: int) -> float | None:
    model = preflight.shape(cell.model) if cell.gpu is not None else None
    if cell.gpu is None or model is None:
        return None
    fraction = plan.memory_fraction(cell, contract)
    machine = machine_fit.read_machine(Path(cell.calibration)) if cell.calibration else Machine()
    made = memory.Deployment(
        model,
        gpus.gpu(cell.gpu),
        cell.tp,
        cell.engine,
        fraction,
        interconnect=preflight.topology_named(cell.interconnect),
        machine=machine,
        expert_parallel=model.experts > 0 and any(arg.partition("=")[0] in _EXPERT_PARALLEL for arg in cell.args),
    )
    predicted = prediction.predict(made, prompt_tokens=prompt_tokens, output_tokens=output_tokens, concurrency=level)
    return predicted.output_tokens_per_s.value if predicted.fits else None


class Remaining:
    """The time that is left: what the performance model expects of the passes to come, corrected by how those done went.

    Passes without a prediction (no GPU is named) count as the mean of the others, or all alike.
    """

    def __init__(self, study: Study, workload: Workload, contract: Contract) -> None:
        expected = {cell.id: of_cell(study, cell, workload, contract).pass_s for cell in study.cells}
        known = [one for passes_s in expected.values() for one in passes_s.values() if one is not None]
        mean_s = sum(known) / len(known) if known else 1.0
        self._expected_s = {
            (cell, level): mean_s if one is None else one
            for cell, passes_s in expected.items()
            for level, one in passes_s.items()
        }
        self._foreseen = bool(known)
        self._repeats = study.repeats
        self._passes = dict.fromkeys(self._expected_s, study.repeats)
        self._done_s = self._ran_s = 0.0
        self._started_s = time.monotonic()

    def never(self, cell_id: str) -> None:
        """A cell that will not be measured at all."""
        self._set(cell_id, 0)

    def ended(self, cell: Cell, repeat: int) -> None:
        """One pass over all levels of a cell is over, measured or not."""
        self._set(cell.id, min(self._repeats - repeat, *(n for (one, _), n in self._passes.items() if one == cell.id)))

    def _set(self, cell_id: str, passes: int) -> None:
        self._passes |= {key: passes for key in self._passes if key[0] == cell_id}

    def pass_s(self, cell: Cell, level: int) -> float | None:
        """Wall seconds that one pass over a level will take, at the pace so far; None while nothing tells."""
        if not self._done_s and not self._foreseen:
            return None
        return self._expected_s[cell.id, level] * (self._ran_s / self._done_s if self._done_s else 1.0)

    def beyond_s(self, cell: Cell, level: int, pass_s: float) -> float:
        """Wall seconds that all other passes to come will take, beside the one over this level, which will take `pass_s`."""
        own_s = self._expected_s[cell.id, level]
        left_s = sum(n * self._expected_s[key] for key, n in self._passes.items()) - own_s
        return max(0.0, left_s) * (self._ran_s / self._done_s if self._done_s else pass_s / own_s)

    def after(self, cell: Cell, level: int) -> str:
        """What to say when a pass has ended: the time that the others will take; nothing after the last."""
        self._passes[cell.id, level] -= 1
        self._done_s += self._expected_s[cell.id, level]
        self._ran_s = time.monotonic() - self._started_s
        left_s = sum(n * self._expected_s[key] for key, n in self._passes.items())
        return f", about {spoken(left_s * self._ran_s / self._done_s)} left" if any(self._passes.values()) else ""


def level_left_s(study: Study, level: int, n_ended: int, elapsed_s: float, expected_s: float | None) -> float | None:
    """Wall seconds that a pass under way will still take; None where that cannot be told yet.

    From the requests that have ended, each under way taken as half done; before any has ended, what was expected
    (`expected_s`) less what has passed.

    >>> study = Study(name="x", workload="math", cells=(Cell(engine="vllm", model="qwq-32b"),))
    >>> level_left_s(study, 4, 0, 60.0, None), level_left_s(study, 4, 0, 60.0, 100.0), level_left_s(study, 4, 4, 60.0, None)
    (None, 40.0, 60.0)
    """
    asked = study.requests(level) + study.warmup_requests * level
    if n_ended == 0:
        return None if expected_s is None else max(0.0, expected_s - elapsed_s)
    if n_ended > asked:  # tasks of several requests
        return None
    done = n_ended + min(level, asked - n_ended) / 2
    return elapsed_s * (asked - done) / done
