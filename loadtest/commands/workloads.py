"""`workload`: list, show, validate, and turn a finished run into one."""

from __future__ import annotations

import argparse

from loadtest.commands.conclusion import Say
from loadtest.errors import LoadtestError


def list_all(arguments: argparse.Namespace, say: Say) -> str:
    """The built-in workloads."""
    raise LoadtestError("not built yet")


def show(arguments: argparse.Namespace, say: Say) -> str:
    """The prompts of a workload."""
    raise LoadtestError("not built yet")


def validate(arguments: argparse.Namespace, say: Say) -> str:
    """Is a file a workload, line by line."""
    raise LoadtestError("not built yet")


def from_run(arguments: argparse.Namespace, say: Say) -> str:
    """A finished run as a workload to replay."""
    raise LoadtestError("not built yet")
