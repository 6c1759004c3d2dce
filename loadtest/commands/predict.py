"""`fit` and `predict`: what the performance model says, with nothing started."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import msgspec

from loadtest.commands import measure
from loadtest.commands.finish import as_json, carry_out, new_folder
from loadtest.errors import UsageError
from loadtest.perfmodel import memory
from loadtest.servers import preflight
from loadtest.study import parse as studies

if TYPE_CHECKING:
    from loadtest.study.execution import Say


def fit(arguments: argparse.Namespace, say: Say) -> str:
    """Does it fit, and what is left."""
    from loadtest.perfmodel import gpus, models

    deployment = memory.Deployment(models.model(arguments.model), gpus.gpu(arguments.gpu), arguments.tp)
    answer = memory.fit(deployment, context_tokens=arguments.context, concurrency=arguments.concurrency)
    return as_json(msgspec.to_builtins(answer)) if arguments.json else "\n".join(answer.lines)


_DEPLOYMENT = (
    "model", "gpu", "prompt_tokens", "output_tokens",
    "tp", "engine", "engine_version", "interconnect", "calibration", "speculation", "expert_parallel", "memory_fraction",
    "concurrency",
)  # fmt: skip


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
    for name in ("find_max", "requests"):
        if getattr(arguments, name):
            raise UsageError(f"--{name.replace('_', '-')}: expected --study with it, got none")
    if arguments.out is not None:
        raise UsageError("--out: expected --study with it, got none; one deployment is printed, not written")
    return _predict_one(arguments)


def _fast_forward(arguments: argparse.Namespace, say: Say) -> str:
    from loadtest.study import fast_forward

    study = measure.searched_cells(studies.load_study(arguments.study), arguments)
    out = arguments.out or new_folder(f"predicted-{study.name}")
    return carry_out(lambda: fast_forward.simulate_study(study, out, say=say), out, say, arguments.json)


def _predict_one(arguments: argparse.Namespace) -> str:
    from loadtest.perfmodel import constants, gpus, machine_fit, models, prediction

    deployment = memory.Deployment(
        models.model(arguments.model),
        gpus.gpu(arguments.gpu),
        1 if arguments.tp is None else arguments.tp,
        arguments.engine or "other",
        memory.DEFAULT_MEMORY_FRACTION if arguments.memory_fraction is None else arguments.memory_fraction,
        engine_version=arguments.engine_version or "",
        interconnect=preflight.topology_named(arguments.interconnect),
        machine=machine_fit.read_machine(arguments.calibration) if arguments.calibration else constants.Machine(),
        expert_parallel=bool(arguments.expert_parallel),
        all_to_all=arguments.expert_parallel == "all-to-all",
        speculation=memory.read_speculation(arguments.speculation) if arguments.speculation else None,
    )
    answer = prediction.predict(
        deployment,
        prompt_tokens=arguments.prompt_tokens,
        output_tokens=arguments.output_tokens,
        concurrency=1 if arguments.concurrency is None else arguments.concurrency,
    )
    return as_json(msgspec.to_builtins(answer)) if arguments.json else "\n".join(answer.lines)
