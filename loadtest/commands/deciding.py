"""`compare`, `check`, `plan`: from numbers to a decision."""

from __future__ import annotations

import argparse

from loadtest.commands.conclusion import Say
from loadtest.errors import LoadtestError


def compare(arguments: argparse.Namespace, say: Say) -> str:
    """Paired verdict for every level and metric of two runs."""
    raise LoadtestError("not built yet")


def check(arguments: argparse.Namespace, say: Say) -> str:
    """A gate for CI."""
    raise LoadtestError("not built yet")


def plan(arguments: argparse.Namespace, say: Say) -> str:
    """How many replicas and cards."""
    raise LoadtestError("not built yet")
