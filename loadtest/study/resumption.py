"""`--resume`: is it the study that the run began with? What is measured must be equal; what judges it may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from loadtest.credentials import redacted
from loadtest.errors import RecordError
from loadtest.records.manifest import UNFINISHED, Manifest
from loadtest.workload.contract import contract_differences, from_table

_MEASURED = (
    "mode",
    "scenario",
    "scenario_options",
    "seed",
    "levels",
    "duration_s",
    "prompts",
    "natural_users",
    "natural_prompts",
)
_SIZES = ("min_requests", "requests_per_stream", "warmup_requests", "cooldown_s", "workers")  # None: an older release
_JUDGING = ("name", "question", "slo", "baseline", "matters", "start_sd", "prices", "findings")
_FREE = ("api_key_env",)  # of a cell

_Changes = dict[str, tuple[object, object]]


def reopened(out: Path, known: Manifest, asked: Manifest) -> Manifest:
    """The manifest of the run in `out`, to be continued by a study that would begin with `asked`.

    It may ask for more repeats than the run did: then the first were looked at before the others, and the verdicts make up
    for it as `until_decided` does. Raises `RecordError` where it measures something else.
    """
    for key, (expected, got) in _changes(known, asked).items():
        raise RecordError(f"{out}: --resume: {key}: expected the run's own {expected}, got {got}; start anew")
    judging = {key: getattr(asked, key) for key in _JUDGING}
    looked = known.until_decided or asked.until_decided or asked.repeats > known.repeats
    commands = tuple(dict.fromkeys((*known.commands, *asked.commands)))
    return msgspec.structs.replace(
        known,
        repeats=asked.repeats,
        until_decided=looked,
        commands=commands,
        complete=False,
        incomplete_reason=UNFINISHED,
        **judging,
    )


def _changes(known: Manifest, asked: Manifest) -> _Changes:
    ours, theirs = _as_read(known), _as_read(asked)
    found: _Changes = {"driven": (known.driven, asked.driven), "workload": (_identity(known), _identity(asked))}
    of_contract = contract_differences(from_table(known.contract), from_table(asked.contract))
    found |= {f"contract: {key}": pair for key, pair in of_contract.items()}
    found |= {key: (ours[key], theirs[key]) for key in _MEASURED}
    found |= {key: (ours[key], theirs[key]) for key in _SIZES if ours[key] is not None}
    if asked.repeats < known.repeats:
        found["repeats"] = f"{known.repeats} or more", asked.repeats
    found |= _cell_changes({one["id"]: one for one in ours["cells"]}, {one["id"]: one for one in theirs["cells"]})
    return {key: (expected, got) for key, (expected, got) in found.items() if expected != got}


def _cell_changes(ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]]) -> _Changes:
    found: _Changes = {"cells": (", ".join(sorted(ours)), ", ".join(sorted(theirs)))}
    for cell in sorted(ours.keys() & theirs.keys()):
        one, other = ours[cell], theirs[cell]
        keys = [key for key in {**one, **other} if key not in _FREE]
        found |= {f"{cell}: {key}": (one.get(key) or None, other.get(key) or None) for key in keys}
    return found


def _identity(manifest: Manifest) -> str | None:
    return None if manifest.workload is None else manifest.workload.identity


def _as_read(manifest: Manifest) -> dict[str, Any]:
    """As `manifest.json` holds it: lists where a study has tuples, and no secret."""
    table: dict[str, Any] = msgspec.json.decode(redacted(msgspec.json.encode(manifest.to_table()).decode()))
    return table
