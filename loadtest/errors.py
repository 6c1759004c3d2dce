"""What can go wrong, as one tree; each class owns its exit code.

LoadtestError                1  could not measure
├── UsageError               2  the command line, a study, a workload or a setting is wrong
├── FitError                 1  the model does not fit the GPUs
├── EngineError              1  an engine could not be started, died, or does not answer
├── RecordError              1  a run folder or a record file cannot be read or written
├── GateError                3  a requirement of `check` or `compare` is not met
└── Interrupted            130  stopped by the user; what was measured is on disk

A failed request is data (`RequestRecord.outcome`), never one of these.
"""

from __future__ import annotations


class LoadtestError(Exception):
    """Root of every error that a user may meet: one line that says what, where and what to do next.

    `said`: what the command has to say on standard output all the same.
    """

    exit_code = 1

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


class UsageError(LoadtestError):
    """The user's input is wrong: an option, a study, a workload, a URL, an environment variable."""

    exit_code = 2


class FitError(LoadtestError):
    """The model, with the KV cache that was asked for, does not fit the GPUs."""


class EngineError(LoadtestError):
    """An engine could not be started, died, or does not answer as it should."""


class RecordError(LoadtestError):
    """A run folder or a record file cannot be read, or can no longer be written."""


class GateError(LoadtestError):
    """A requirement of `check` or `compare` is not met."""

    exit_code = 3


class Interrupted(LoadtestError):  # noqa: N818 - named as what happened, like KeyboardInterrupt
    """The user stopped the run; everything measured so far is on disk and marked incomplete."""

    exit_code = 130
