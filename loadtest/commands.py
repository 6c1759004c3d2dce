"""What each command does: arguments in, files and the text to print out. `cli` parses and prints."""

from __future__ import annotations

import argparse
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec

from loadtest import engines, orchestrate, passes, records, resources
from loadtest import study as studies
from loadtest.contract import Contract
from loadtest.errors import Interrupted, LoadtestError, UsageError

Say = Callable[[str], None]


def demo(arguments: argparse.Namespace, say: Say) -> str:
    """The whole matrix against the embedded simulator."""
    study = studies.load(resources.path("scenarios/studies/demo.toml"))
    return _measure(study, arguments.out or _new_folder("demo"), say)


def run(arguments: argparse.Namespace, say: Say) -> str:
    """A study, from its file to its page."""
    study = studies.select(studies.load(arguments.study), arguments.only)
    if arguments.dry_run:
        return _dry_run(study)
    if arguments.resume and arguments.out is None:
        raise UsageError("--resume: expected --out with the folder of the unfinished run, got none")
    out = arguments.out or _new_folder(study.name)
    return _measure(study, out, say, resume=arguments.resume, force=arguments.force, as_json=arguments.json)


def attach(arguments: argparse.Namespace, say: Say) -> str:
    """A server that already runs, measured as a study of one cell."""
    info = engines.probe(arguments.base_url)
    cell = studies.Cell(
        engine=arguments.engine or cast("studies.Engine", info.engine),
        model=arguments.model or info.model or "model",
        tp=arguments.tp or info.tp or 1,
        gpu=arguments.gpu or info.gpu,
        base_url=arguments.base_url,
        context_tokens=info.max_model_len,
        clock_speed=info.clock_speed if info.simulated else None,
    )
    contract: dict[str, Any] = {}
    if arguments.max_tokens is not None:
        contract["max_tokens"] = arguments.max_tokens
    if arguments.extra_body is not None:
        contract["extra_body"] = _json_object(arguments.extra_body, "--extra-body")
    study = studies.Study(
        name=f"{cell.engine} at {arguments.base_url}",
        workload=arguments.workload,
        cells=(cell,),
        mode=arguments.mode,
        levels=studies.parse_levels(arguments.concurrency),
        duration_s=arguments.duration,
        warmup_requests=arguments.warmup_requests,
        seed=arguments.seed,
        slo=tuple(arguments.slo),
        contract=contract,
    )
    if arguments.requests is not None:
        study = replace(study, min_requests=arguments.requests, requests_per_stream=1)
    return _measure(study, arguments.out or _new_folder("attach"), say, as_json=arguments.json)


def _measure(
    study: studies.Study, out: Path, say: Say, *, resume: bool = False, force: bool = False, as_json: bool = False
) -> str:
    """Measure a study for real, and conclude."""
    return _carry_out(lambda: orchestrate.execute(study, out, resume=resume, force=force, say=say), out, say, as_json)


def _carry_out(execute: Callable[[], tuple[str, ...]], out: Path, say: Say, as_json: bool) -> str:
    """Carry a study out, analyse it, write its page; the same for an interrupted one, which then exits 130."""
    interrupted = False
    problems: tuple[str, ...] = ()
    try:
        problems = execute()
    except KeyboardInterrupt:
        interrupted = True
        say("interrupted: analysing what was measured so far")
    said = _conclude(out, say, as_json=as_json)
    if interrupted:
        raise Interrupted(f"interrupted; what was measured is in {out} and reported as incomplete in {out / 'report.html'}")
    if problems:
        raise LoadtestError(
            f"{len(problems)} cell(s) not measured whole ({problems[0]}); the rest is in {out / 'report.html'}"
        )
    return said


def analyze(arguments: argparse.Namespace, say: Say) -> str:
    """Records to metrics.json and metrics.csv."""
    numbers = _analyze(arguments.run)
    return _as_json(numbers) if arguments.json else f"{_table(arguments.run, numbers)}\n{arguments.run / 'metrics.json'}"


def make_report(arguments: argparse.Namespace, say: Say) -> str:
    """The page of each run, from its metrics.json (made first where it is missing)."""
    if arguments.output is not None and len(arguments.runs) > 1:
        raise UsageError(
            f"--output: expected one RUN for one page, got {len(arguments.runs)}; leave it out for a page in each"
        )
    pages = []
    for run in arguments.runs:
        if not (run / "metrics.json").exists():
            _analyze(run)
        pages.append(arguments.output or run / "report.html")
        _write_page(run, pages[-1])
    return "\n".join(map(str, pages))


def _conclude(out: Path, say: Say, *, as_json: bool) -> str:
    say("analysing")
    numbers = _analyze(out)
    say("drawing the page")
    page = out / "report.html"
    _write_page(out, page)
    return _as_json(numbers) if as_json else f"{_table(out, numbers)}\n{page}"


def _table(folder: Path, numbers: dict[str, Any]) -> str:
    """The decision, as a compact table for a terminal."""
    from loadtest import report

    return report.terminal_table(numbers, records.read_json(folder / "manifest.json"))


def _analyze(folder: Path) -> dict[str, Any]:
    from loadtest import findings, metrics

    run = records.read_run(folder)
    numbers = metrics.analyze(run, claims=findings.load(_claims(run.manifest.get("findings"))))
    records.write_json(folder / "metrics.json", numbers)
    records.write_csv(folder / "metrics.csv", metrics.to_rows(numbers))
    return numbers


def _claims(name: str | None) -> Path:
    """The claims that a study names: a file, or one of `reports/findings/`; without a name, the published ones."""
    own = Path(name or "qwq-32b-ada")
    return own if own.suffix == ".toml" else resources.path(f"reports/findings/{own}.toml")


def _write_page(folder: Path, page: Path) -> None:
    from loadtest import report

    numbers = records.read_json(folder / "metrics.json")
    manifest = records.read_json(folder / "manifest.json")
    described = {p.parent.name: records.read_json(p) for p in sorted(folder.glob("cells/*/engine.json"))}
    report.write(numbers, manifest, described, page, page.parent / "plots")


def serve(arguments: argparse.Namespace, say: Say) -> str:
    """Start one runtime in the foreground, or show how."""
    cell = studies.Cell(
        engine=arguments.engine,
        model=arguments.model,
        tp=arguments.tp,
        gpu=arguments.gpu,
        context_tokens=arguments.context,
        args=tuple(arguments.engine_args),
    )
    contract = Contract()
    spec = orchestrate.launch_spec(cell, contract, arguments.port)
    if arguments.print:
        return _shell(spec)
    orchestrate.refuse_misfit(cell, contract)
    say(_shell(spec))
    return engines.serve(spec)


def _dry_run(study: studies.Study) -> str:
    """The plan of a study: each cell with its fit, its command, and the Locust command of each level."""
    head = (
        f"{study.name}: {len(study.cells)} cells, levels {list(study.levels)}, {study.repeats} pass(es); nothing is started"
    )
    return "\n".join([head, *(line for cell in study.cells for line in _plan_of(study, cell))])


def _plan_of(study: studies.Study, cell: studies.Cell) -> list[str]:
    contract = orchestrate.contract_of(study)
    fit = orchestrate.fit_of(cell, contract)
    lines = [
        "",
        cell.id,
        *(fit.lines if fit is not None else ["fit: not checked (no gpu is named, or the server runs already)"]),
    ]
    if cell.base_url is None:
        lines.append(_shell(orchestrate.launch_spec(cell, contract, port=8000)))
    target = passes.Target(cell.base_url or "http://127.0.0.1:8000", cell.model, cell.clock_speed or 1.0)
    for level in study.levels:
        argv = passes.command(study, cell, target, level, 1, Path("RUN"), "RUN-ID")
        lines.append(f"{level} streams, {study.requests(level)} requests: {shlex.join(argv)}")
    return lines


def _shell(spec: engines.LaunchSpec) -> str:
    """A launch as a line for a shell: its settings, then its command."""
    argv, settings = engines.command(spec)
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in sorted(settings.items())), shlex.join(argv)])


def fit(arguments: argparse.Namespace, say: Say) -> str:
    """Does it fit, and what is left."""
    from loadtest import hardware, models, roofline

    deployment = roofline.Deployment(models.model(arguments.model), hardware.gpu(arguments.gpu), arguments.tp)
    answer = roofline.fit(deployment, context_tokens=arguments.context, concurrency=arguments.concurrency)
    return _as_json(msgspec.to_builtins(answer)) if arguments.json else "\n".join(answer.lines)


_DEPLOYMENT = ("model", "gpu", "prompt_tokens", "output_tokens", "tp", "engine", "concurrency")


def predict(arguments: argparse.Namespace, say: Say) -> str:
    """What the performance model expects: of one deployment, or of a whole study."""
    given = [f"--{name.replace('_', '-')}" for name in _DEPLOYMENT if getattr(arguments, name) is not None]
    if arguments.study is not None:
        if given:
            raise UsageError(
                f"{given[0]}: expected --study alone, as the study names its cells; leave {' '.join(given)} out"
            )
        return _fast_forward(arguments, say)
    missing = [f"--{name.replace('_', '-')}" for name in _DEPLOYMENT[:4] if getattr(arguments, name) is None]
    if missing:
        raise UsageError(f"{missing[0]}: expected {' '.join(missing)} for one deployment, or --study FILE; got neither")
    if arguments.out is not None:
        raise UsageError("--out: expected --study with it, got none; one deployment is printed, not written")
    return _predict_one(arguments)


def _fast_forward(arguments: argparse.Namespace, say: Say) -> str:
    from loadtest import fast_forward

    study = studies.load(arguments.study)
    out = arguments.out or _new_folder(f"predicted-{study.name}")
    return _carry_out(lambda: fast_forward.execute(study, out, say=say), out, say, arguments.json)


def _predict_one(arguments: argparse.Namespace) -> str:
    from loadtest import hardware, models, roofline

    tp = 1 if arguments.tp is None else arguments.tp
    deployment = roofline.Deployment(
        models.model(arguments.model), hardware.gpu(arguments.gpu), tp, arguments.engine or "other"
    )
    answer = roofline.predict(
        deployment,
        prompt_tokens=arguments.prompt_tokens,
        output_tokens=arguments.output_tokens,
        concurrency=1 if arguments.concurrency is None else arguments.concurrency,
    )
    return _as_json(msgspec.to_builtins(answer)) if arguments.json else "\n".join(answer.lines)


def _as_json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _json_object(text: str, option: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise UsageError(f"{option}: expected a JSON object, got {text[:80]!r}: {error}") from error


def _new_folder(name: str) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "run"
    return Path("runs") / f"{slug}-{time.strftime('%Y%m%d-%H%M%S')}"
