"""`init` and `doctor`: a new place to work in, and what this machine lacks."""

from __future__ import annotations

import argparse

from loadtest.commands.conclusion import Say
from loadtest.errors import LoadtestError


def init(arguments: argparse.Namespace, say: Say) -> str:
    """Scenarios, studies, launchers and templates, copied for editing."""
    raise LoadtestError("not built yet")


def doctor(arguments: argparse.Namespace, say: Say) -> str:
    """What this machine has, what is missing, and the command that cures it."""
    raise LoadtestError("not built yet")
