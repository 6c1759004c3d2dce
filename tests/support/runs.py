"""Runs for the tests of what is shown: what `analyze` makes of real records, and variants of it.

`simulated()` is a fast-forwarded study, analysed once a session: three deployments of two engines, and one that is refused.
`measured()` is the same as if the engines had been real, `damaged()` one that was interrupted, `hostile()` one whose every
text tries to break out of the page.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec

from loadtest import resources
from loadtest.analysis import claims
from loadtest.analysis.run import analyze
from loadtest.metrics.figures import unknown
from loadtest.records.engine_facts import ContractFacts, EngineFacts
from loadtest.records.environment import Environment
from loadtest.records.read import read_run
from loadtest.report.page import Source
from loadtest.study import fast_forward
from loadtest.study import parse as studies
from tests.support import builders

HOSTILE = "<script>alert('x')</script>\u202egnp.exe\u200b\x07\"'><img src=x onerror=alert(1)> $\\frac{1}{0}$ {{7*7}}"
STUDY = """
name = "qwq-32b on Ada GPUs"
workload = "ledger:n=24,seed=7,difficulty=4"
findings = "qwq-32b-ada"
levels = [1, 4]
min_requests = 12
requests_per_stream = 10
seed = 7
slo = ["time_to_final_answer_s:p50<600", "ttft_s:p50<2"]
prices = { gpu_hour = 1.2, currency = "USD" }
[contract]
max_tokens = 4096
[[cells]]
engine = ["sglang-sim", "vllm-sim"]
model = "qwq-32b-awq"
tp = [1, 2]
gpu = "l20"
args = ["--length-scale", "0.1"]
[[cells]]
engine = ["sglang-sim", "vllm-sim"]
model = "qwq-32b"
tp = [1, 2]
gpu = "l20"
args = ["--length-scale", "0.1"]
"""

change = msgspec.structs.replace


# What analyze makes --------------------------------------------------------------------------------------------------


def analysed(run, findings=()):
    """A run in memory with its metrics."""
    return Source(analyze(run, findings), run.manifest, {cell.id: cell.engine for cell in run.cells}, {})


@functools.cache
def simulated():
    """A study of eight cells in virtual time, two of them refused as they do not fit."""
    published = resources.path("reports/findings/qwq-32b-ada.toml")
    with tempfile.TemporaryDirectory() as folder:
        fast_forward.simulate_study(studies.parse_study(STUDY), Path(folder) / "run", say=lambda _: None)
        return analysed(read_run(Path(folder) / "run"), claims.parse_claims(published.read_bytes(), str(published)))


@functools.cache
def small():
    """A measured run of two engines, each at concurrency 1 and 2, with a short prompt set."""
    return analysed(builders.study(repeats=3))


# Variants ------------------------------------------------------------------------------------------------------------


def with_metrics(source, **changes):
    return replace(source, metrics=change(source.metrics, **changes))


def with_cells(source, edit):
    return with_metrics(source, cells=tuple(map(edit, source.metrics.cells)))


def with_levels(source, edit):
    return with_cells(source, lambda cell: change(cell, levels=tuple(map(edit, cell.levels))))


def with_comparisons(source, edit):
    return with_metrics(source, comparisons=tuple(map(edit, source.metrics.comparisons)))


def with_decisions(source, edit):
    return with_metrics(source, decisions=tuple(map(edit, source.metrics.decisions)))


def without_distribution(level, metric):
    """A level at which no request has the metric."""
    found = getattr(level, metric)
    nothing = dict.fromkeys(("mean", "p50", "p90", "p95", "p99"))
    empty = change(found, n=0, min=None, max=None, ci95=change(found.ci95, **nothing), **nothing)
    return change(level, **{metric: empty})


_MEASURED = {"predicted": "reproduced", "not_predicted": "contradicted"}


def measured():
    """The same figures as if real engines had been measured."""
    source = simulated()
    found = with_cells(
        source, lambda cell: change(cell, id=_real(cell.id), engine=cell.family, engine_version="1.0", simulated=False)
    )
    found = with_comparisons(found, lambda row: change(row, a=_real(row.a), b=_real(row.b), simulated=False))
    found = with_decisions(found, lambda one: change(one, a=_real(one.a), b=_real(one.b), simulated=False))
    findings = tuple(
        change(row, simulated=False, verdict=_MEASURED.get(row.verdict, row.verdict), cells=tuple(map(_real, row.cells)))
        for row in source.metrics.findings
    )
    engines = {_real(name): engine for name, engine in source.engines.items()}
    manifest = change(source.manifest, simulated=False)
    return replace(with_metrics(found, simulated=False, findings=findings), manifest=manifest, engines=engines)


def _real(cell):
    return cell.replace("-sim", "")


def damaged():
    """A measured run that was interrupted: a cell that died, failed health, levels without data, thin samples."""
    source, late = measured(), "the event loop woke up to 0.31 s late"
    first, second, refused, third, *others = source.metrics.cells
    sick = change(first.levels[1], client_health=change(first.levels[1].client_health, status="fail", reasons=(late,)))
    first = change(first, levels=(sick,))
    second = change(second, status="died", reason="the server was killed: out of memory", levels=())
    low, high = third.levels
    for metric in ("ttft_s", "time_to_final_answer_s"):
        low = without_distribution(low, metric)
    low = change(low, output_tokens_per_s=unknown("no steady window"), n_requests=3)
    third = change(third, levels=(low, high), roofline=change(third.roofline, bound_tokens_per_s=None))
    rows = [row for row in source.metrics.comparisons if not {row.a, row.b} & {first.id, second.id}]
    no_ratio = change(rows[0].ratio, value=None, ci95=None)
    rows[0] = change(rows[0], ratio=no_ratio, verdict="too few samples", reason="needs 8 pairs, has 3")
    rows[1] = change(rows[1], ratio=no_ratio, verdict="not comparable", reason="different top_k")
    health = change(
        source.metrics.health, client="fail", complete=False, reasons=(f"{first.id} at 4: {late}", "interrupted by the user")
    )
    metrics = change(
        source.metrics,
        complete=False,
        health=health,
        cells=(first, second, refused, third, *others),
        comparisons=tuple(rows),
        decisions=tuple(one for one in source.metrics.decisions if not {one.a, one.b} & {first.id, second.id}),
    )
    manifest = change(source.manifest, incomplete_reason="interrupted by the user")
    return replace(source, metrics=metrics, manifest=manifest)


def hostile():
    """A run folder made by a stranger: every free text is an attack."""
    bad, source = HOSTILE, simulated()
    cells = tuple(
        change(cell, id=f"{cell.id}{bad}", model=bad, engine_version=bad, gpu=bad, reason=bad, levels=_hostile_levels(cell),
               fit=None if cell.fit is None else change(cell.fit, lines=(bad,)))
        for cell in source.metrics.cells
    )  # fmt: skip
    metrics = change(
        source.metrics,
        run_id=bad,
        run=change(source.metrics.run, name=bad, started=bad, slo=(bad,), workload=_hostile_workload(source.metrics)),
        health=change(source.metrics.health, reasons=(bad,)),
        cells=cells,
        comparisons=tuple(
            change(row, a=f"{row.a}{bad}", b=f"{row.b}{bad}", model=bad, reason=bad) for row in source.metrics.comparisons
        ),
        decisions=tuple(
            change(one, a=f"{one.a}{bad}", b=f"{one.b}{bad}", model=bad, reason=bad) for one in source.metrics.decisions
        ),
        findings=tuple(
            change(row, id=bad, claim=bad, expected=bad, measured=bad, reason=bad) for row in source.metrics.findings
        ),
    )
    manifest = change(
        source.manifest,
        name=bad,
        question=bad,
        contract={bad: bad},
        commands=(bad,),
        environment=_hostile_machine(),
        scenario=bad,
    )
    contract = ContractFacts(effective={bad: bad}, violations=(bad,))
    facts = EngineFacts(id=bad, engine_version=bad, command=(bad,), env={bad: bad}, contract=contract)
    return Source(metrics, manifest, dict.fromkeys((cell.id for cell in cells), facts), {cell.id: (bad,) for cell in cells})


def _hostile_levels(cell):
    return tuple(
        change(
            level,
            error_kinds={HOSTILE: 1},
            failed_share=change(level.failed_share, value=0.1),
            client_health=change(level.client_health, status="fail", reasons=(HOSTILE,)),
        )
        for level in cell.levels
    )


def _hostile_workload(metrics):
    workload = metrics.run.workload
    return None if workload is None else change(workload, source=HOSTILE, name=HOSTILE, identity=HOSTILE)


def _hostile_machine():
    return Environment(python=HOSTILE, platform=HOSTILE, cpu=HOSTILE, cores=1, memory_bytes=1, packages={HOSTILE: HOSTILE})
