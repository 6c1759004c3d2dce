"""Workloads whose prompts have exact lengths by a server's count: `synthetic` and public traces."""

from __future__ import annotations

from loadtest.workload import synthetic
from loadtest.workload.synthetic import CountPrompt, FittedWords
from loadtest.workload.traces import trace


def is_exact(spec: str) -> bool:
    """Does a spec ask for exact lengths, so that its outputs are forced?"""
    return synthetic.is_synthetic(spec) or trace.is_trace(spec)


def is_open(spec: str) -> bool:
    """Has a spec still to be fitted to a server?

    >>> is_open("synthetic:isl=64,osl=8"), is_open("synthetic:isl=64,osl=8,template=9"), is_open("math:n=4")
    (True, False, False)
    """
    if trace.is_trace(spec):
        return trace.trace_spec(spec).template is None
    return synthetic.is_synthetic(spec) and synthetic.shape_of(spec).template is None


def fit_spec(spec: str, count: CountPrompt) -> tuple[str, FittedWords]:
    """The spec that makes the same prompts anywhere, of the lengths asked for by this count, and what it was told.

    >>> fit_spec("synthetic:isl=64,osl=8", lambda text: 20 + len(text.split()))[0]
    'synthetic:isl=64,osl=8,template=25,words=abcdefgh'
    """
    if trace.is_trace(spec):
        chosen = trace.trace_spec(spec)
        fitted = synthetic.fit_words(spec, max((row.prompt_tokens for row in trace.rows_of(chosen)), default=1), count)
        mark = ":" if spec.endswith(chosen.path) else ","
    else:
        shape = synthetic.shape_of(spec)
        fitted, mark = synthetic.fit_words(spec, shape.longest(shape.isl), count), ","
    made = f"{spec}{mark}template={fitted.template_tokens},words={fitted.letters}"
    if synthetic.is_synthetic(spec):
        synthetic.shape_of(made)  # is there room beside the template?
    return made, fitted
