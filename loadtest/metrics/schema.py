"""metrics.json: the types of the whole file. `analysis` makes a `Metrics`, `decode` reads one back, all else takes it.

The parts of a level are in `level_schema`, figures in `figures`, the definitions of metrics in `catalogue`. Keys are a
contract: they are added, never renamed. `decode` ignores keys that it does not know, so a file of a later release with the
same `schema_version` can be read; a missing or wrong key, or another version, is one error.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

import msgspec

from loadtest.errors import RecordError
from loadtest.metrics.catalogue import Statistic
from loadtest.metrics.figures import Bounded, Estimate, OpenInterval
from loadtest.metrics.level_schema import ComposedLevel, ConditionCheck, Evidence, GateStatus, LevelFigures
from loadtest.records.engine_facts import CellStatus, ClockError, MemoryFit, SearchedKind, Side
from loadtest.records.imported import Imported
from loadtest.records.manifest import RunWorkload
from loadtest.records.schema import SCHEMA_VERSION, Mode, TokenCountSource, about, damage_text

ComparisonVerdict = Literal["faster", "slower", "equal", "undecided", "one start each", "too few samples", "not comparable"]
LengthVerdict = Literal["fewer", "more", "no detectable difference", "too few samples"]
FindingVerdict = Literal["reproduced", "contradicted", "undecided", "predicted", "not_predicted", "not_measured"]
ClaimKind = Literal["value", "fit", "weights", "maximum_concurrency", "ahead", "gain"]
Binding = Literal["slo", "kv_cache", "not_reached"]
RepeatUnit = Literal["start", "round"]
SearchWord = Literal["within", "broken", "undecided"]
SearchLimit = Literal["slo", "undecided", "max_concurrency", "kv_cache", "stopped"]


# Run -----------------------------------------------------------------------------------------------------------------


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the manifest says of the run."""

    id: Annotated[str | None, about("As `run_id`.")]
    name: Annotated[str | None, about("Name of the study.")]
    started: Annotated[str | None, about("Start, UTC, such as `2026-11-26T07:39:06Z`.")]
    mode: Annotated[Mode | None, about("`equal-work` forces output lengths; `decision`: bursts.")]
    workload: Annotated[RunWorkload | None, about("What was asked; None: the manifest does not say.")]
    clock_speed: Annotated[float, about("Simulated seconds per second; 1 for real engines and in virtual time.")]
    slo: Annotated[tuple[str, ...], about("SLOs of the study, such as `ttft_s:p90<2`.")]
    clock_error: Annotated[ClockError | None, about("Of all cells; None where no simulator told its own times.")]
    imported: Annotated[Imported | None, about("The tool that measured it; None: loadtest.")] = None


class RunHealth(msgspec.Struct, frozen=True, kw_only=True):
    """May the run be relied on?"""

    client: Annotated[GateStatus, about("Worst `client_health` of any level; `not_checked` without levels.")]
    reconciliation: Annotated[GateStatus, about("Worst `reconciliation` of any level.")]
    complete: Annotated[bool, about("Every pass ended as it should and no record is torn.")]
    counted_by: Annotated[TokenCountSource | None, about("Least reliable counter of tokens in it; None: nothing finished.")]
    reasons: Annotated[tuple[str, ...], about("Why not to rely on it: `CELL at CONCURRENCY: what`, or what alone.")]
    windows: Annotated[tuple[str, ...], about("Steady windows that fail a check, likewise; these fail no gate.")]


# Cells ---------------------------------------------------------------------------------------------------------------


class Roofline(msgspec.Struct, frozen=True, kw_only=True):
    """One request alone against what memory bandwidth allows."""

    bound_tokens_per_s: Annotated[float | None, about("Bandwidth of all GPUs / bytes of the weights; None: unknown GPU.")]
    reached_tokens_per_s: Annotated[float | None, about("Mean `tokens_per_s_per_user` at concurrency 1.")]
    reached_share: Annotated[Bounded | None, about("Reached / bound; None where either is unknown.")]
    reason: Annotated[str | None, about("Why the share is unknown.")]


class MaximumConcurrency(msgspec.Struct, frozen=True, kw_only=True):
    """The highest concurrency within the SLOs, and what limits it."""

    by_slo: Annotated[int | None, about("Highest level up to which every level meets every SLO by its figure; 0: none.")]
    ci95: Annotated[
        tuple[int, int | None] | None,
        about("Highest up to which all are met by whole intervals (0: none); before one surely broken (None: none is)."),
    ]
    by_kv_cache: Annotated[int | None, about("Requests of the whole context that the KV cache holds; None: unknown fit.")]
    by_kv_workload: Annotated[Bounded, about("KV cache / `context_tokens` of the highest level.")]
    limit: Annotated[
        Binding | None,
        about("What breaks first. `kv_cache`: the level that broke has more requests than `by_kv_workload`; "
              "`not_reached`: none up to `tried` broke; None: cannot be judged."),
    ]  # fmt: skip
    tried: Annotated[int | None, about("Highest level measured; None: cannot be judged.")]
    binds: Annotated[str | None, about("The SLO that breaks first.")]
    reason: Annotated[str | None, about("Why it cannot be judged.")]


class CellFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One cell: an engine that serves a model on some GPUs."""

    id: Annotated[str, about("Its name and folder, such as `vllm_qwq-32b_tp2`.")]
    engine: Annotated[str, about("`sglang`, `vllm`, `sglang-sim`, `vllm-sim` or `other`.")]
    engine_version: Annotated[str | None, about("As the server says it.")]
    model: Annotated[str | None, about("Registry name, hub name or directory.")]
    tp: Annotated[int | None, about("GPUs in tensor parallel.")]
    gpu: Annotated[str | None, about("Registry name of the GPU; None: not known.")]
    endpoint: Annotated[str | None, about("Host or socket of a server that was attached to; None: started by the run.")]
    mode: Annotated[Mode | None, about("`equal-work` forces output lengths.")]
    simulated: Annotated[bool, about("Its figures are predictions.")]
    clock_speed: Annotated[float | None, about("Simulated seconds per second.")]
    clock_error: Annotated[ClockError | None, about("How far times are off the simulator's own; None where it told none.")]
    status: Annotated[
        CellStatus | None,
        about("`refused`: does not fit; `skipped`: this machine cannot start it; `failed`: did not start; `died`; "
              "`starting`: killed before it ended; None: a scenario under Locust."),
    ]  # fmt: skip
    reason: Annotated[str | None, about("Why it is not `ok`.")]
    fit: Annotated[MemoryFit | None, about("None where the GPU or the model is unknown.")]
    roofline: Roofline
    maximum_concurrency: MaximumConcurrency
    levels: Annotated[tuple[LevelFigures, ...], about("By concurrency, ascending; empty where nothing was measured.")]
    name: Annotated[str | None, about("Of the configuration, where an engine has several.")] = None
    gpus: Annotated[dict[str, int], about("Of several pools behind one URL: GPUs of each kind; empty: `tp` of `gpu`.")] = {}
    factors: Annotated[dict[str, str], about("What the study varies, and the level that this cell has of each.")] = {}
    side: Annotated[Side | None, about("Of a duel: the first server or the second. None: no duel.")] = None
    servers: Annotated[tuple[str, ...], about("Those that took turns; empty: one server, or a router.")] = ()
    proxy: Annotated[str | None, about("The proxy that its requests went through; its time is in every figure.")] = None
    insecure: Annotated[bool, about("The server's certificate was not verified.")] = False
    composed: Annotated[tuple[ComposedLevel, ...], about("Of bursts, by concurrency; empty without them.")] = ()
    conditions: Annotated[tuple[ConditionCheck, ...], about("Of composed figures; empty likewise.")] = ()

    @property
    def family(self) -> str:
        """The engine, simulated or not: `sglang`, `vllm`, `other`."""
        return self.engine.removesuffix("-sim")

    @property
    def usable(self) -> tuple[ComposedLevel, ...]:
        """The composed levels, where every condition that was checked holds; none otherwise."""
        return () if any(one.status == "broken" for one in self.conditions) else self.composed

    @property
    def gpu_count(self) -> int | None:
        """GPUs that serve it, of all kinds; None where nobody said."""
        return sum(self.gpus.values()) or (None if self.tp is None else self.tp * self.n_servers)

    @property
    def n_servers(self) -> int:
        """Servers that took turns; 1 where there was one, or a router."""
        return max(1, len(self.servers))

    def level(self, concurrency: int) -> LevelFigures | None:
        return next((level for level in self.levels if level.concurrency == concurrency), None)

    def estimate(self, concurrency: int, metric: str, statistic: Statistic = "value") -> Estimate | None:
        """One figure of one level; None where there is no such level."""
        level = self.level(concurrency)
        return None if level is None else level.estimate(metric, statistic)


# Searches ------------------------------------------------------------------------------------------------------------


class SearchObjective(msgspec.Struct, frozen=True, kw_only=True):
    """One SLO at one level of a search."""

    slo: Annotated[str, about("The SLO as it was given.")]
    verdict: Annotated[SearchWord, about("Of its interval: on the right side of `needed`, on the wrong one, or on both.")]
    figure: Annotated[
        Bounded,
        about("What is held against `needed`; its interval holds although the level was looked at after each request."),
    ]
    needed: Annotated[float, about("The share asked for, or the limit itself.")]
    of_requests: Annotated[bool, about("`figure` is the share of requests within the limit; else the SLO's own figure.")] = (
        False
    )


class SearchLevel(msgspec.Struct, frozen=True, kw_only=True):
    """One level that a search tried."""

    concurrency: Annotated[int, about("The level: requests in flight at once, or as `of` of the search says.")]
    verdict: Annotated[SearchWord, about("`within`: every SLO surely met; `broken`: one surely broken.")]
    objectives: Annotated[tuple[SearchObjective, ...], about("One for each SLO.")]
    n_requests: Annotated[int, about("Measured requests.")]
    load_s: Annotated[float, about("From its first request to its last end, warm-up included, over its passes.")]


class ConcurrencySearch(msgspec.Struct, frozen=True, kw_only=True):
    """The largest concurrency, or rate of arrivals, of one cell within the SLOs, as `search` or `--find-max` found it:
    between `within` and `broken`."""

    cell: Annotated[str, about("Its id.")]
    simulated: Annotated[bool, about("The cell is simulated.")]
    within: Annotated[int, about("Largest level surely within every SLO; 0: none.")]
    broken: Annotated[int | None, about("Smallest level that surely breaks one; None: none did.")]
    binds: Annotated[str | None, about("The SLO that `broken` breaks.")]
    limit: Annotated[
        SearchLimit,
        about("What ended it. `slo`: no level is left between the two; `undecided`: those between stayed undecided; "
              "`max_concurrency`, `kv_cache`: the highest level allowed is not broken; `stopped`: see `reason`."),
    ]  # fmt: skip
    reason: Annotated[str | None, about("Why it stopped before it was done: the budget, an interruption, a failure.")]
    start: Annotated[int, about("Level that it began with.")]
    start_source: Annotated[str, about("Where that level is from.")]
    most: Annotated[int, about("Highest level allowed.")]
    of: Annotated[
        SearchedKind, about("What a level is: requests in flight (`users`), or Poisson arrivals per hour (`requests/h`).")
    ] = "users"
    levels: Annotated[tuple[SearchLevel, ...], about("In the order in which they were tried.")]
    n_requests: Annotated[int, about("Measured requests of all levels.")]
    gpu_minutes: Annotated[float | None, about("Time under load x GPUs, simulated minutes if so; None: GPUs unknown.")]


# Comparisons and findings --------------------------------------------------------------------------------------------


class Why(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a difference of mean times to final answer (a - b) is made of; the parts add up to it exactly. Of measured
    requests that finished. The parts are left out where one side finished none."""

    difference_s: Annotated[float | None, about("a - b; None where one side finished no request.")]
    tokens_thought_s: Annotated[float | None, about("Difference of tokens thought x mean seconds per token.")] = None
    tokens_answered_s: Annotated[float | None, about("Difference of tokens answered x mean seconds per token.")] = None
    seconds_per_token_s: Annotated[float | None, about("Difference of seconds per token x mean tokens.")] = None
    waiting_s: Annotated[float | None, about("Difference of the waits for the first token.")] = None
    n_a: Annotated[int | None, about("Requests of a.")] = None
    n_b: Annotated[int | None, about("Requests of b.")] = None
    reason: Annotated[str | None, about("What is not in it, or why it is missing.")]


class OutputLengths(msgspec.Struct, frozen=True, kw_only=True):
    """How long a's outputs are against b's, over the prompts that both finished."""

    ratio: Annotated[Bounded, about("Tokens of a / tokens of b, geometric mean, with its own interval.")]
    verdict: Annotated[LengthVerdict, about("At 5 %, not corrected: it explains a difference.")]
    n: Annotated[int, about("Prompts that both finished.")]
    reason: Annotated[str, about("The method, or why there are too few.")]


class Comparison(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Two cells in one metric at one level: a / b."""

    model: Annotated[str | None, about("Model of a.")]
    tp: Annotated[int | None, about("GPUs of a.")]
    gpu: Annotated[str | None, about("GPU of a.")]
    a: Annotated[str, about("Id of the first cell (of `compare`: of the candidate).")]
    b: Annotated[str, about("Id of the second cell (of `compare`: of the baseline).")]
    simulated: Annotated[bool, about("Either side is simulated.")]
    concurrency: Annotated[int, about("Requests in flight at once, of both.")]
    metric: Annotated[str, about("One of `COMPARED`.")]
    ratio: Annotated[Bounded, about("a / b, with the 95 % interval of this one ratio, not corrected.")]
    verdict: Annotated[ComparisonVerdict, about("Whether a is faster, at 5 % after correction; of a pair: `decisions`.")]
    p_value: Annotated[float | None, about("Two-sided, of no difference; None without a verdict.")]
    p_value_holm: Annotated[float | None, about("Behind the pair's decision, after Holm's correction; 0.05 decides.")]
    smallest_detectable_ratio: Annotated[float | None, about("The ratio above 1 that would be found with 80 % power.")]
    n_a: Annotated[int, about("Starts of a's server.")]
    n_b: Annotated[int, about("Starts of b's server.")]
    method: Annotated[str | None, about("How the ratio was found; None without a verdict.")]
    reason: Annotated[str, about("The method and its limits, or why there is no verdict.")]
    why: Annotated[Why | None, about("Only of `time_to_final_answer_s` of comparable cells; else left out.")] = None
    output_tokens: Annotated[OutputLengths | None, about("Likewise.")] = None


class PairDecision(msgspec.Struct, frozen=True, kw_only=True):
    """Which of two engines is faster: one question for each pair, over all levels that both have."""

    model: Annotated[str | None, about("Model of a.")]
    tp: Annotated[int | None, about("GPUs of a.")]
    gpu: Annotated[str | None, about("GPU of a.")]
    a: Annotated[str, about("Id of the first cell (of `compare`: of the candidate).")]
    b: Annotated[str, about("Id of the second cell (of `compare`: of the baseline).")]
    simulated: Annotated[bool, about("Either side is simulated.")]
    metric: Annotated[str, about("`time_to_final_answer_s` at equal length; without finished answers, tokens/s per user.")]
    evidence: Annotated[Evidence, about("`composed`: of bursts and the lengths of one natural run.")] = "measured"
    broken: Annotated[tuple[str, ...], about("Conditions that fail, in words: natural passes decide instead.")] = ()
    concurrency: Annotated[tuple[int, ...], about("Levels that it is the mean over.")]
    verdict: Annotated[ComparisonVerdict, about("Of a against b. At most 5 % of studies of equal engines have a wrong one.")]
    ratio: Annotated[
        Bounded, about("a / b, with the interval that holds for all pairs at once: the verdict is read off it.")
    ]
    raw_ratio: Annotated[
        Bounded,
        about("a / b as it was seen, luck of lengths and all (composed: at own lengths); its own 95 % interval."),
    ]
    equal_within_share: Annotated[float, about("A difference below it does not matter: `equal`.")]
    n_a: Annotated[int, about("Starts of a's server.")]
    n_b: Annotated[int, about("Starts of b's server.")]
    start_sd: Annotated[float | None, about("How much starts differ, as a share; None: no cell has two.")]
    n_more_starts: Annotated[int | None, about("More starts of each that would decide; None: decided, or over 40.")]
    output_tokens: Annotated[OutputLengths | None, about("All levels together; None where the cells are not comparable.")]
    population: Annotated[str, about("What the interval holds for.")]
    raw_population: Annotated[str, about("What that of `raw_ratio` holds for.")] = "for these prompts"
    reason: Annotated[str, about("What it rests on, or why there is no verdict.")]
    unit: Annotated[RepeatUnit, about("Of a duel the round: what is said of starts is then of rounds.")] = "start"


class FactorFigure(msgspec.Struct, frozen=True, kw_only=True):
    """A change in one metric, averaged as the change itself."""

    metric: Annotated[str, about("One of `COMPARED`.")]
    ratio: Annotated[Bounded, about("Mean over levels, with its own 95 % interval.")]


class FactorLevel(msgspec.Struct, frozen=True, kw_only=True):
    """A change at one concurrency, in the metric of the change: where it pays, and where it stops to."""

    concurrency: Annotated[int, about("Requests in flight at once.")]
    ratio: Annotated[Bounded, about("Level / baseline, with an interval that holds for all concurrencies at once.")]
    verdict: Annotated[ComparisonVerdict, about("Read off that interval.")]


class FactorEffect(msgspec.Struct, frozen=True, kw_only=True):
    """What one level of a factor does against the baseline's level, averaged over the levels of the study's other factors:
    cells that differ in nothing else are paired."""

    factor: Annotated[str, about("A flag, a variable, `executable`, or the study's own word.")]
    level: Annotated[str, about("Its level.")]
    baseline: Annotated[str, about("The level that it is held against.")]
    engine: Annotated[str, about("As of the cells.")]
    model: Annotated[str | None, about("As of the cells.")]
    tp: Annotated[int | None, about("As of the cells.")]
    gpu: Annotated[str | None, about("As of the cells.")]
    simulated: Annotated[bool, about("Some cell is simulated.")]
    pairs: Annotated[tuple[tuple[str, str], ...], about("Ids of the cells: with the level, and with the baseline's.")]
    metric: Annotated[str, about("As of a pair's decision.")]
    concurrency: Annotated[tuple[int, ...], about("Levels of concurrency that it is the mean over.")]
    verdict: Annotated[ComparisonVerdict, about("Of the level against the baseline's.")]
    ratio: Annotated[Bounded, about("Level / baseline, with an interval that holds for all effects of the study at once.")]
    pair_ratios: Annotated[tuple[float, ...], about("Of each pair: far apart, the effect depends on the other factors.")]
    n_starts: Annotated[int, about("Starts of a cell's server, the fewest.")]
    by_concurrency: Annotated[tuple[FactorLevel, ...], about("Empty where bursts decide.")]
    figures: Annotated[tuple[FactorFigure, ...], about("In other metrics; likewise.")]
    reason: Annotated[str, about("What it rests on, or why there is no verdict.")]


class ClaimResult(msgspec.Struct, frozen=True, kw_only=True):
    """A published claim, and what this run says of it."""

    id: Annotated[str, about("Of the claim, in its file.")]
    claim: Annotated[str, about("What was claimed of what.")]
    expected: Annotated[str, about("The figure that was claimed, in words.")]
    measured: Annotated[float | int | str | None, about("The figure or word that answers it; its unit follows from `kind`.")]
    ci95: Annotated[OpenInterval | None, about("95 % interval of the figure.")]
    kind: Annotated[ClaimKind, about("How it is judged.")]
    metric: Annotated[str, about("The metric it is about; empty where `kind` says it.")]
    verdict: Annotated[FindingVerdict, about("Simulated cells, and arithmetic, only predict.")]
    simulated: Annotated[bool, about("A cell that it was judged by is simulated.")]
    reason: Annotated[str, about("What it was judged by, or why it was not.")]
    cells: Annotated[tuple[str, ...], about("Ids of the cells that it was judged by.")]


# The file ------------------------------------------------------------------------------------------------------------


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of metrics.json: every figure of one run. Times are seconds of the run's clock (simulated seconds where a
    simulated clock runs faster), intervals are 95 % confidence intervals, null means not known, never 0."""

    schema_version: Annotated[int, about("Of this file and of the records it was made from.")]
    run_id: Annotated[str | None, about("Start and name of the run.")]
    simulated: Annotated[bool, about("Some figure is a prediction of the simulator.")]
    complete: Annotated[bool, about("As `health.complete`.")]
    run: RunFacts
    health: RunHealth
    cells: Annotated[tuple[CellFigures, ...], about("By id.")]
    comparisons: Annotated[
        tuple[Comparison, ...],
        about("Every two engines with the same model, GPUs, mode and name; other configurations against their baseline."),
    ]
    decisions: Annotated[tuple[PairDecision, ...], about("Which engine of each pair is faster, over its levels.")]
    factors: Annotated[tuple[FactorEffect, ...], about("What each level of what the study varies does.")] = ()
    findings: Annotated[tuple[ClaimResult, ...], about("The claims that the study names, in the order of their file.")]
    searches: Annotated[tuple[ConcurrencySearch, ...], about("One for each cell of a search.")] = ()


class _Version(msgspec.Struct):
    schema_version: Any = None


def encode(metrics: Metrics) -> bytes:
    """metrics.json as it is written (`records.write_json` does the same, and redacts keys)."""
    return msgspec.json.format(msgspec.json.encode(metrics), indent=1) + b"\n"


def decode(raw: bytes, where: str) -> Metrics:
    """Read metrics.json; `where`: its path. Raises RecordError, one line: what is wrong, where, and the next step."""
    again = f"make it again with loadtest analyze {where.rpartition('/')[0] or '.'}"
    try:
        version = msgspec.json.decode(raw, type=_Version).schema_version
        if version != SCHEMA_VERSION:
            raise RecordError(f"{where}: schema_version: expected {SCHEMA_VERSION}, got {version!r}; {again}")
        return msgspec.json.decode(raw, type=Metrics)
    except msgspec.ValidationError as error:
        raise RecordError(f"{where}: {damage_text(str(error))}; {again}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"{where}: expected a JSON object, got something else ({error}); {again}") from error


def json_schema() -> dict[str, Any]:
    """JSON Schema of metrics.json, every key with its description: docs/metrics.schema.json."""
    found = msgspec.json.schema(Metrics)
    parts = {name: _in_json_words(part) for name, part in found["$defs"].items()}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "metrics.json of loadtest"}
    return {**head, "$ref": found["$ref"], "$defs": parts}


def _in_json_words(part: Any) -> Any:
    """A part of the schema, its descriptions on one line, with null for None."""
    if isinstance(part, list):
        return [_in_json_words(one) for one in part]
    if not isinstance(part, dict):
        return part
    words = (
        {"description": re.sub(r"\bNone\b", "null", " ".join(part["description"].split()))} if _is_described(part) else {}
    )
    return {key: _in_json_words(value) for key, value in part.items()} | words


def _is_described(part: dict[str, Any]) -> bool:
    return isinstance(part.get("description"), str)


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=1))
