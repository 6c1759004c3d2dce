"""How long a study will take, by the performance model: an estimate, for the plan and for the time remaining."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from loadtest.client import thinking
from loadtest.errors import UsageError
from loadtest.perfmodel import gpus, machine_fit, memory, prediction, step_time
from loadtest.perfmodel.constants import Machine
from loadtest.records.folder import PassKind
from loadtest.report.formatting import spoken
from loadtest.servers import preflight
from loadtest.simulator.core import lengths
from loadtest.study import plan
from loadtest.study.bursts.asked import burst_passes, natural_cells, natural_passes, natural_run
from loadtest.study.schema import AskedPass, Cell, Study
from loadtest.workload import bursts
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
_SPECULATION = "--speculation"


@dataclass(frozen=True, slots=True)
class CellTime:
    """Wall seconds that a cell will take: one start, each pass of a repeat, and passes that are needed once; None where it
    cannot be foreseen."""

    start_s: float
    passes_s: dict[AskedPass, float | None]
    once_s: dict[AskedPass, float | None] = field(default_factory=dict)

    def all_s(self, repeats: int) -> float | None:
        """All passes, with a start for each repeat."""
        each, once = (_sum(times.values()) for times in (self.passes_s, self.once_s))
        return None if each is None or once is None else (self.start_s + each) * repeats + once


def _sum(times: Iterable[float | None]) -> float | None:
    known = list(times)
    return None if None in known else sum(one for one in known if one is not None)


def of_cell(study: Study, cell: Cell, workload: Workload, contract: Contract, *, natural: bool = True) -> CellTime:
    """What the performance model expects of a cell: requests x tokens of output / tokens a second, over the clock's speed.

    Lengths are the workload's recorded ones, else those that the simulator draws, so that for an unknown model the time may
    be off several times over. `natural`: of a study that decides, the natural run is on this cell.
    """
    if not study.decides:
        return of_passes(study, cell, workload, contract, natural_passes(study))
    once = natural_run(study, contract, cell) if natural else []
    each = burst_passes(study, contract, cell)
    return CellTime(_start_s(cell), *(_passes_s(study, cell, workload, contract, some) for some in (each, once)))


def of_passes(study: Study, cell: Cell, workload: Workload, contract: Contract, passes: Iterable[AskedPass]) -> CellTime:
    """One start of a cell with these passes."""
    return CellTime(_start_s(cell), _passes_s(study, cell, workload, contract, passes))


def _passes_s(
    study: Study, cell: Cell, workload: Workload, contract: Contract, asked: Iterable[AskedPass]
) -> dict[AskedPass, float | None]:
    speed, beside_s = cell.clock_speed or 1.0, study.cooldown_s + _PASS_START_S
    contract = replace(contract, mode=cell.mode or contract.mode)
    prompt_tokens, output_tokens = mean_tokens(cell, workload.prompts, contract)
    found: dict[AskedPass, float | None] = {}
    for one in asked:
        took_s = study.duration_s
        if one.kind == "bursts":
            took_s = _bursts_s(cell, contract, one, prompt_tokens)
        elif one.requests is not None and one.most_in_flight is not None:
            took_s = 3600.0 * one.requests / one.concurrency  # requests per hour
        elif one.requests is not None:
            rate = _tokens_per_s(cell, contract, prompt_tokens, output_tokens, one.concurrency)
            sent = one.requests + one.warmup_requests * one.concurrency
            took_s = None if rate is None else sent * output_tokens / rate
        found[one] = None if took_s is None else took_s / speed + beside_s
    return found


def _bursts_s(cell: Cell, contract: Contract, asked: AskedPass, prompt_tokens: int) -> float | None:
    """Prompts one after another, then all outputs at once."""
    made = deployment_of(cell, contract)
    if made is None:
        return None
    streams, chunk = asked.concurrency, step_time.chunk_tokens(made, max(asked.contexts_tokens))
    rows = [(streams, min(asked.contexts_tokens), bursts.WARMUP_TOKENS)]
    rows += [(1, prompt_tokens, bursts.LONE_TOKENS)] * bursts.LONE_PROMPTS
    rows += [(streams, context, bursts.OUTPUT_TOKENS) for context in asked.contexts_tokens]
    return sum(
        n * step_time.prefill_s(made, context, chunk) + step_time.decode_s(made, context, tokens, n)
        for n, context, tokens in rows
    )


def _start_s(cell: Cell) -> float:
    if cell.base_url is not None:
        return 0.0
    if cell.simulated:
        return _SIMULATOR_START_S
    model = preflight.shape(cell.model)
    return _ENGINE_START_S + (model.weight_bytes / _LOADING_BYTES_PER_S if model is not None else 0.0)


def mean_tokens(cell: Cell, prompts: Sequence[Prompt], contract: Contract) -> tuple[int, int]:
    """Mean prompt and output of the workload (tokens)."""
    pairs = request_tokens(cell, prompts, contract)
    prompt, output = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return round(prompt), max(1, round(output))


def request_tokens(cell: Cell, prompts: Sequence[Prompt], contract: Contract) -> list[tuple[int, int]]:
    """Prompt and output of each request of the workload (tokens): recorded lengths, else those that the simulator draws."""
    sizes = [prompt.prompt_tokens or round(prompt.chars / _CHARS_PER_TOKEN) + TEMPLATE_TOKENS for prompt in prompts]
    outputs = [max(1, _output_tokens(cell, prompt, contract)) for prompt in prompts]
    return list(zip(sizes, outputs, strict=True))


def _output_tokens(cell: Cell, prompt: Prompt, contract: Contract) -> int:
    forced = contract.forced_tokens(prompt)
    if forced is not None:
        return forced
    drawn = lengths.draw_lengths(prompt.id, contract.seed, scale=_length_scale(cell.args))
    thought = drawn.thinking_tokens if thinking.opens_in_prompt(cell.model) else 0
    formed = prompt.output_form is not None and prompt.answer is not None
    answered = len(prompt.answer or "") // _CHARS_PER_TOKEN if formed else drawn.answer_tokens
    return min(prompt.forced_tokens or thought + answered, contract.limit_tokens(prompt))


def _speculation(args: Sequence[str]) -> memory.Speculation | None:
    """Of a simulator's arguments; None where they do not say, or wrongly. What an engine accepts is not known before."""
    try:
        return memory.read_speculation(args[args.index(_SPECULATION) + 1]) if _SPECULATION in args else None
    except (UsageError, IndexError):
        return None


def _holds_whole_experts(args: Sequence[str]) -> bool:
    return _sends_tokens(args) or any(arg.partition("=")[0] in _EXPERT_PARALLEL for arg in args)


def _sends_tokens(args: Sequence[str]) -> bool:
    """Do experts get their tokens by all-to-all: `--moe-a2a-backend` of SGLang, `all-to-all` of a simulator?"""
    words = [word for arg in args for word in arg.split("=", 1)]
    pairs = list(pairwise(words))
    sglang = any(key == "--moe-a2a-backend" and value != "none" for key, value in pairs)
    return sglang or ("--expert-parallel", "all-to-all") in pairs


def _length_scale(args: Sequence[str]) -> float:
    """Of a simulator's arguments; 1 where they do not say, or wrongly."""
    try:
        return float(args[args.index(_LENGTH_SCALE) + 1]) if _LENGTH_SCALE in args else 1.0
    except (ValueError, IndexError):
        return 1.0


def _tokens_per_s(cell: Cell, contract: Contract, prompt_tokens: int, output_tokens: int, level: int) -> float | None:
    made = deployment_of(cell, contract)
    if made is None:
        return None
    predicted = prediction.predict(made, prompt_tokens=prompt_tokens, output_tokens=output_tokens, concurrency=level)
    return predicted.output_tokens_per_s.value if predicted.fits else None


def deployment_of(cell: Cell, contract: Contract) -> memory.Deployment | None:
    """What the performance model is told of a cell; None where model or GPU are not known, or one does not fit the other."""
    model = preflight.shape(cell.model) if cell.gpu is not None else None
    if cell.gpu is None or model is None:
        return None
    made = memory.Deployment(
        model,
        gpus.gpu(cell.gpu),
        cell.tp,
        cell.engine,
        plan.memory_fraction(cell, contract),
        interconnect=preflight.topology_named(cell.interconnect),
        machine=machine_fit.read_machine(Path(cell.calibration)) if cell.calibration else Machine(),
        speculation=_speculation(cell.args),
        expert_parallel=model.experts > 0 and _holds_whole_experts(cell.args),
        all_to_all=model.experts > 0 and _sends_tokens(cell.args),
    )
    fit = plan.fit_of(cell, contract)
    return made if fit is None or fit.fits else None


_Key = tuple[str, PassKind, int]  # cell, kind of pass, concurrency


class Remaining:
    """The time that is left: what the performance model expects of the passes to come, corrected by how those done went.

    Passes without a prediction (no GPU is named) count as the mean of the others, or all alike.
    """

    def __init__(self, study: Study, workload: Workload, contract: Contract, blocked: Collection[str] = ()) -> None:
        chosen = natural_cells(study, contract, blocked)
        self._repeats = study.repeats
        self._passes: dict[_Key, int] = {}
        expected: dict[_Key, float | None] = {}
        for cell in study.cells:
            if not study.decides or (fit := plan.fit_of(cell, contract)) is None or fit.fits:
                time_s = of_cell(study, cell, workload, contract, natural=cell.id in chosen)
                for times, repeats in ((time_s.passes_s, study.repeats), (time_s.once_s, 1)):
                    for asked, one_s in times.items():
                        expected[_key(cell, asked)] = one_s
                        self._passes[_key(cell, asked)] = repeats
        known = [one for one in expected.values() if one is not None]
        self._mean_s = sum(known) / len(known) if known else 1.0
        self._expected_s = {key: self._mean_s if one is None else one for key, one in expected.items()}
        self._foreseen = bool(known)
        self._done_s = self._ran_s = 0.0
        self._started_s = time.monotonic()

    def never(self, cell_id: str) -> None:
        """A cell that will not be measured at all."""
        self._at_most(cell_id, 0)

    def ended(self, cell: Cell, repeat: int) -> None:
        """One repeat of a cell is over, measured or not."""
        self._at_most(cell.id, self._repeats - repeat)

    def _at_most(self, cell_id: str, passes: int) -> None:
        self._passes |= {key: min(n, passes) for key, n in self._passes.items() if key[0] == cell_id}

    def pass_s(self, cell: Cell, asked: AskedPass) -> float | None:
        """Wall seconds that one pass will take, at the pace so far; None while nothing tells."""
        if not self._done_s and not self._foreseen:
            return None
        return self._expected(cell, asked) * (self._ran_s / self._done_s if self._done_s else 1.0)

    def _expected(self, cell: Cell, asked: AskedPass) -> float:
        return self._expected_s.get(_key(cell, asked), self._mean_s)

    def beyond_s(self, cell: Cell, asked: AskedPass, pass_s: float) -> float:
        """Wall seconds that all other passes to come will take, beside this one, which will take `pass_s`."""
        own_s = self._expected(cell, asked)
        left_s = sum(n * self._expected_s[key] for key, n in self._passes.items()) - own_s
        return max(0.0, left_s) * (self._ran_s / self._done_s if self._done_s else pass_s / own_s)

    def after(self, cell: Cell, asked: AskedPass) -> str:
        """What to say when a pass has ended: the time that the others will take; nothing after the last."""
        key = _key(cell, asked)
        self._passes[key] = max(0, self._passes.get(key, 0) - 1)
        self._expected_s.setdefault(key, self._mean_s)
        self._done_s += self._expected_s[key]
        self._ran_s = time.monotonic() - self._started_s
        left_s = sum(n * self._expected_s[key] for key, n in self._passes.items())
        return f", about {spoken(left_s * self._ran_s / self._done_s)} left" if any(self._passes.values()) else ""


def _key(cell: Cell, asked: AskedPass) -> _Key:
    return cell.id, asked.kind, asked.concurrency


def level_left_s(asked: AskedPass, n_ended: int, elapsed_s: float, expected_s: float | None) -> float | None:
    """Wall seconds that a pass under way will still take; None where that cannot be told yet.

    From the requests that have ended, each under way taken as half done; of bursts, and before any has ended, what was
    expected (`expected_s`) less what has passed.

    >>> asked = AskedPass(concurrency=4, requests=8, warmup_requests=1)
    >>> level_left_s(asked, 0, 60.0, None), level_left_s(asked, 0, 60.0, 100.0), level_left_s(asked, 4, 60.0, None)
    (None, 40.0, 60.0)
    """
    total = (asked.requests or 0) + asked.warmup_requests * asked.concurrency
    if asked.kind == "bursts" or n_ended == 0:
        return None if expected_s is None else max(0.0, expected_s - elapsed_s)
    if n_ended > total:  # tasks of several requests
        return None
    done = n_ended + min(asked.concurrency, total - n_ended) / 2
    return elapsed_s * (total - done) / done
