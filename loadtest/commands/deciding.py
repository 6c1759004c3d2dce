"""`compare`, `check`, `plan`: from numbers to a decision."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadtest import records, resources
from loadtest.commands.conclusion import Say, as_json
from loadtest.errors import GateError, UsageError

Json = Mapping[str, Any]


def compare(arguments: argparse.Namespace, say: Say) -> str:
    """Paired verdict for every level and metric of two runs; GateError on a significant regression."""
    from loadtest import compare, metrics

    if arguments.tolerance < 0:
        raise UsageError(f"--tolerance: expected a percentage from 0 up, got {arguments.tolerance:g}")
    baseline, candidate = (records.read_run(path) for path in (arguments.baseline, arguments.candidate))
    found = compare.runs(baseline, candidate, arguments.tolerance / 100, arguments.allow)
    for side, run in (("baseline", baseline), ("candidate", candidate)):
        gates = metrics.analyze(run)["health"]
        found["not_compared"] += [f"{side}: DOUBTFUL: {reason}" for reason in gates["reasons"]]
    said = as_json(found) if arguments.json else _comparison(found)
    if found["regressions"]:
        first = found["regressions"][0]
        raise GateError(
            f"{len(found['regressions'])} significant regression(s) beyond {arguments.tolerance:g} %: {first['metric']} of"
            f" {first['a']} at {first['concurrency']} users is {_ratio(first)} of the baseline's",
            said,
        )
    return said


def _comparison(found: Json) -> str:
    """The verdicts as a table, and why each time to final answer differs."""
    text = [f"candidate {found['candidate']} / baseline {found['baseline']}"]
    if found["simulated"]:
        text.append("SIMULATED: these figures are predictions")
    if found["allowed"]:
        text.append(f"compared although they differ in {', '.join(found['allowed'])}")
    body = [("cell", "users", "metric", "ratio", "95 % interval", "verdict", "detectable")]
    for row in found["comparisons"]:
        name = row["a"] if row["a"] == row["b"] else f"{row['a']} / {row['b']}"
        least = row["smallest_detectable_ratio"]
        verdict = row["verdict"] if row["p_value"] is not None else f"{row['verdict']} ({row['reason']})"
        ends = row["ratio"]["ci95"]
        body.append(
            (name, str(row["concurrency"]), row["metric"], _number(row["ratio"]["value"]),
             f"{ends[0]:.3g} to {ends[1]:.3g}" if ends else "-", verdict, "-" if least is None else f"{least - 1:+.1%}")
        )  # fmt: skip
    text += ["", *_aligned(body), ""]
    text += [_why(row) for row in found["comparisons"] if (row.get("why") or {}).get("difference_s") is not None]
    text += [f"not compared: {one}" for one in found["not_compared"]]
    return "\n".join(text).rstrip()


def _why(row: Json) -> str:
    why = row["why"]
    lost = f"; {why['reason']}" if why["reason"] else ""
    return (
        f"why, {row['a']} at {row['concurrency']} users: {_signed_s(why['difference_s'])} to the final answer ="
        f" {_signed_s(why['tokens_thought_s'])} tokens thought {_signed_s(why['tokens_answered_s'])} tokens answered"
        f" {_signed_s(why['seconds_per_token_s'])} time per token {_signed_s(why['waiting_s'])} waiting for the first{lost}"
        f"{_thinks_less(row)}"
    )


def _signed_s(seconds: float) -> str:
    """With its sign; what only rounding left of nothing is +0."""
    return f"{round(seconds, 9) + 0.0:+.3g} s"


def _thinks_less(row: Json) -> str:
    """Said where one side's outputs are shorter: then it is not the runtime alone that is slower or faster."""
    tokens = row.get("output_tokens") or {}
    if tokens.get("verdict") not in ("fewer", "more"):
        return ""
    (low, high), value = tokens["ratio"]["ci95"], tokens["ratio"]["value"]
    return f"; outputs of {tokens['verdict']} tokens: {value:.3g} of the baseline's ({low:.3g} to {high:.3g})"


def _ratio(row: Json) -> str:
    low, high = row["ratio"]["ci95"]
    return f"{row['ratio']['value']:.3g} (95 % interval {low:.3g} to {high:.3g})"


def check(arguments: argparse.Namespace, say: Say) -> str:
    """A gate for CI: every requirement at every level, or GateError."""
    from loadtest import metrics, slo

    objectives = [slo.parse(text) for text in arguments.require]
    numbers = metrics.analyze(records.read_run(arguments.run))
    levels = sorted({level["concurrency"] for cell in numbers["cells"] for level in cell["levels"]})
    if arguments.concurrency is not None and arguments.concurrency not in levels:
        raise UsageError(f"--concurrency {arguments.concurrency}: expected a level of the run, one of {levels}")
    found = slo.gate(numbers, objectives, arguments.concurrency, allow_unhealthy=arguments.allow_unhealthy)
    found |= {"run_id": numbers["run_id"], "simulated": numbers["simulated"]}
    said = as_json(found) if arguments.json else _gate(found)
    if not found["met"]:
        raise GateError(_unmet(found), said)
    return said


def _gate(found: Json) -> str:
    text = ["SIMULATED: these figures are predictions", ""] if found["simulated"] else []
    body = [("cell", "users", "required", "measured", "95 % interval", "result")]
    for row in found["rows"]:
        ends = row["ci95"]
        needs = f" (needs {row['n_needed']} requests)" if row["n_needed"] else ""
        body.append(
            (row["cell"], str(row["concurrency"]), row["slo"], _number(row["value"]),
             f"{ends[0]:.4g} to {ends[1]:.4g}" if ends else "-", f"{row['result']}{needs}")
        )  # fmt: skip
    text += _aligned(body) if len(body) > 1 else []
    text += [f"not measured: {one}" for one in found["unmeasured"]]
    text += [f"DOUBTFUL: {one}" for one in found["unhealthy"]]
    return "\n".join(text)


def _unmet(found: Json) -> str:
    failing = [row for row in found["rows"] if row["result"] != "met"]
    if failing:
        first = failing[0]
        return (
            f"{len(failing)} requirement(s) not met: {first['slo']} of {first['cell']} at {first['concurrency']} users is"
            f" {first['result']}, got {_number(first['value'])}"
        )
    if found["unmeasured"]:
        return f"not shown: {found['unmeasured'][0]}"
    doubt = found["unhealthy"][0]
    return f"the run cannot be relied on: {doubt}; measure again, or judge all the same with --allow-unhealthy"


PREDICTED_LEVELS = (1, 2, 4, 8, 16, 32)
PREDICTED_REQUESTS = 40  # a p90 needs 36
_WORDS = {"slo": "SLO", "kv_cache": "KV cache", "not_reached": "none reached", None: "-"}


def plan(arguments: argparse.Namespace, say: Say) -> str:
    """Replicas, cards and cost of every configuration, cheapest first."""
    from loadtest import capacity, slo

    objectives = [slo.parse(text) for text in arguments.slo]
    capacity.Demand(arguments.users, arguments.answers_per_hour, arguments.headroom, arguments.gpu_hour_price)
    if arguments.source is not None and arguments.study is not None:
        raise UsageError("plan: expected one of --from RUN (measurements) and --study (a prediction), got both")
    numbers, manifest = _predicted(arguments, say) if arguments.source is None else _measured(arguments.source)
    prices = manifest.get("prices") or {}
    price = prices.get("gpu_hour") if arguments.gpu_hour_price is None else arguments.gpu_hour_price
    demand = capacity.Demand(arguments.users, arguments.answers_per_hour, arguments.headroom, price)
    objectives = objectives or [slo.parse(text) for text in manifest.get("slo") or ()]
    found = {
        "source": "performance model" if arguments.source is None else f"run {numbers['run_id']}",
        "simulated": numbers["simulated"],
        "slo": [one.text for one in objectives],
        "users": demand.users,
        "answers_per_hour": demand.answers_per_hour,
        "headroom": demand.headroom,
        "gpu_hour_price": price,
        "currency": prices.get("currency") if arguments.gpu_hour_price is None else None,
        "options": capacity.plan(numbers["cells"], objectives, demand),
        "doubts": numbers["health"]["reasons"],
    }
    return as_json(found) if arguments.json else _options(found)


def _measured(run: Path) -> tuple[Json, Json]:
    from loadtest import metrics

    read = records.read_run(run)
    return metrics.analyze(read), read.manifest


def _predicted(arguments: argparse.Namespace, say: Say) -> tuple[Json, Json]:
    """The cells of a study, fast-forwarded through the performance model into a folder that does not stay."""
    from loadtest import fast_forward
    from loadtest import study as studies

    study = studies.load(arguments.study or resources.path("scenarios/studies/qwq-32b-ada.toml"))
    study = replace(study, levels=PREDICTED_LEVELS, min_requests=PREDICTED_REQUESTS, duration_s=None)
    say(f"no --from: predicting {study.name} by the performance model; nothing of it is measured")
    with tempfile.TemporaryDirectory() as folder:
        fast_forward.execute(study, Path(folder) / "run", say=say)
        return _measured(Path(folder) / "run")


def _options(found: Json) -> str:
    asked = f"{found['users']} users" if found["users"] else f"{found['answers_per_hour']:g} answers an hour"
    source = "PREDICTED" if found["source"] == "performance model" else "SIMULATED" if found["simulated"] else "measured"
    slos = ", ".join(found["slo"])
    text = [f"{asked} within {slos}, {found['headroom']:.0%} of each replica kept free; by {found['source']} ({source})"]
    if source == "PREDICTED":
        text.append("intervals hold the spread of the workload, not the error of the model (docs/performance-model.md)")
    body = [("", "cell", "streams", "replicas", "cards", "1,000 answers", "1M tokens", "J/answer", "limit")]
    for row in found["options"]:
        costs = [_span(row[f"cost_per_{key}"]) for key in ("1000_answers", "million_output_tokens")]
        limit = _WORDS[row["limit"]] + (f" {row['binds']}" if row["binds"] else "")
        word = source if source == "PREDICTED" else "SIMULATED" if row["simulated"] else "measured"
        holds = [_span(row[key]) for key in ("streams_per_replica", "replicas", "cards")]
        body.append((word, row["cell"], *holds, *costs, _number(row["joules_per_answer"]["value"]), limit))
    text += ["", *_aligned(body), ""]
    text += [f"{row['cell']}: {row['reason']}" for row in found["options"] if row["reason"]]
    text += [f"DOUBTFUL: {one}" for one in found["doubts"]]
    return "\n".join(text).rstrip()


def _span(figure: Json) -> str:
    """A figure with its interval; an end that nothing bounds is a question mark."""
    if figure["value"] is None:
        return "-"
    low, high = figure["ci95"] or (None, None)
    ends = "" if low is None and high is None else f" [{_end(low)}, {_end(high)}]"
    return f"{_number(figure['value'])}{ends}"


def _end(value: float | None) -> str:
    return "?" if value is None else _number(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _aligned(body: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in body) for i in range(len(body[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in body]
