"""What a run says of itself in `manifest.json`, in the same words whoever opens it: a study, or a scenario under Locust."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadtest import credentials
from loadtest.records import environment
from loadtest.records.schema import SCHEMA_VERSION

VIRTUAL_TIME = "virtual time"  # `driven` in the manifest of a fast-forwarded study: there was no load generator

UNFINISHED = "still running, or killed before it could say how it ended"


def begun(
    *,
    run_id: str,
    name: str,
    scenario: str,
    driven: str,
    simulated: bool,
    clock_speed: float,
    seed: int,
    workload: Mapping[str, Any],
    contract: Mapping[str, Any],
    **study: Any,
) -> dict[str, Any]:
    """The manifest of a run that begins: incomplete until `ended` says otherwise.

    `workload`: `Workload.facts`. `study`: what a study adds or knows better (`question`, `slo`, `prices`, `findings`,
    `levels`, `repeats`, `cells`).
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "name": name,
        "question": "",
        "started_unix_s": time.time(),
        "complete": False,
        "incomplete_reason": UNFINISHED,
        "interrupted": False,
        "driven": driven,
        "simulated": simulated,
        "clock_speed": clock_speed,
        "mode": contract["mode"],
        "scenario": scenario,
        "workload": dict(workload),
        "contract": dict(contract),
        "slo": [],
        "prices": {},
        "findings": None,
        "commands": [_typed()],
        "seed": seed,
        "levels": [],
        "repeats": 0,
        "environment": environment.describe(),
        "cells": [],
        **study,
    }


def _typed() -> str:
    """The command line that began the run, its program without the folder, no key in it."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return credentials.redacted(shlex.join((name, *sys.argv[1:])))


def ended(problems: list[str], *, interrupted: bool) -> dict[str, Any]:
    """What is known when it ends: complete where nothing went wrong, else every problem."""
    return {
        "complete": not problems,
        "incomplete_reason": "; ".join(problems) or None,
        "interrupted": interrupted,
        "ended_unix_s": time.time(),
    }
