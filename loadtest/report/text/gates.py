"""What `check` and `compare` say, for other programs: JUnit XML for CI, Markdown for a pull request.

JUnit as CI systems read it: one test case for each requirement or comparison; a requirement that is not met is a failure,
one that is not shown (its interval holds the limit, or too few requests) an error; a comparison without a verdict is
skipped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from loadtest.analysis.decisions import GateReport, GateRow, RunComparison
from loadtest.metrics.figures import Bounded
from loadtest.metrics.schema import Comparison, PairDecision
from loadtest.report.terminal import SIMULATED, interval_text, number_text

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>#!|~@$&])")


@dataclass(frozen=True, slots=True)
class Case:
    """One line of a gate: what was asked, of what, and how it ended."""

    name: str
    of: str
    said: str
    result: Literal["passed", "failure", "error", "skipped"]


def gate_cases(found: GateReport) -> list[Case]:
    """A case for each requirement at each level, for each cell without a level, and for each doubt about the run."""
    results: dict[str, Literal["passed", "failure", "error"]] = {"met": "passed", "not met": "failure", "not shown": "error"}
    return [
        *(Case(one.slo, _place(one.cell, one.concurrency), _measured(one), results[one.result]) for one in found.rows),
        *(Case("measured", "run", said, "error") for said in found.unmeasured),
        *(Case("sound", "run", said, "error") for said in found.unhealthy),
    ]


def comparison_cases(found: RunComparison) -> list[Case]:
    """A case for each decision over levels and for each comparison; a regression is a failure."""
    worse = {(one.a, one.b, one.concurrency, one.metric) for one in found.regressions}
    slower = {(one.a, one.b) for one in found.slower}
    return [
        *(_decision_case(one, (one.a, one.b) in slower) for one in found.decisions if one.ratio.known),
        *(_comparison_case(one, (one.a, one.b, one.concurrency, one.metric) in worse) for one in found.comparisons),
        *(Case("compared", "runs", said, "skipped") for said in found.not_compared),
    ]


def junit(cases: Sequence[Case], suite: str, *, simulated: bool) -> bytes:
    """The cases as a JUnit file."""
    kinds = [case.result for case in cases]
    name = _xml(f"{suite} (simulated)" if simulated else suite)
    counts = {"tests": len(cases), "failures": kinds.count("failure"), "errors": kinds.count("error"),
              "skipped": kinds.count("skipped")}  # fmt: skip
    root = ElementTree.Element("testsuites")
    top = ElementTree.SubElement(root, "testsuite", {"name": name, **{key: str(n) for key, n in counts.items()}})
    for case in cases:
        element = ElementTree.SubElement(top, "testcase", {"classname": _xml(case.of), "name": _xml(case.name)})
        if case.result == "passed":
            ElementTree.SubElement(element, "system-out").text = _xml(case.said)
        else:
            ElementTree.SubElement(element, case.result, {"message": _xml(case.said)})
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def summary(cases: Sequence[Case], title: str, *, met: bool, simulated: bool) -> str:
    """The cases as Markdown: the answer first, then what is not met, then all of them folded."""
    wrong = [case for case in cases if case.result in ("failure", "error")]
    lines = [f"### {'✅' if met else '❌'} {in_markdown(title)}", ""]
    lines += [f"**{SIMULATED}**", ""] if simulated else []
    lines += [f"- **{in_markdown(case.name)}**, {in_markdown(case.of)}: {in_markdown(case.said)}" for case in wrong]
    lines += ["", f"<details><summary>All {len(cases)} results</summary>", "", "| | of | result |", "|---|---|---|"]
    lines += [f"| {in_markdown(case.name)} | {in_markdown(case.of)} | {in_markdown(case.said)} |" for case in cases]
    return "\n".join([*lines, "", "</details>"]) + "\n"


def _measured(row: GateRow) -> str:
    needs = f"; needs {row.n_needed} requests" if row.n_needed else ""
    return f"{row.result}: {number_text(row.value)}{_ci(Bounded(row.value, row.ci95))}{needs}"


def _decision_case(one: PairDecision, slower: bool) -> Case:
    said = f"{one.verdict}: {number_text(one.ratio.value, 3)} of the baseline's{_ci(one.ratio)}"
    known = one.verdict in ("faster", "slower", "equal")
    return Case(f"{one.metric} over all levels", _pair(one.a, one.b), said, _result(slower, known))


def _comparison_case(one: Comparison, worse: bool) -> Case:
    reason = f" ({one.reason})" if one.p_value is None and one.reason else ""
    said = f"{one.verdict}{reason}: {number_text(one.ratio.value, 3)} of the baseline's{_ci(one.ratio)}"
    return Case(one.metric, _place(_pair(one.a, one.b), one.concurrency), said, _result(worse, one.p_value is not None))


def _result(worse: bool, known: bool) -> Literal["passed", "failure", "skipped"]:
    if worse:
        return "failure"
    return "passed" if known else "skipped"


def _pair(a: str, b: str) -> str:
    return a if a == b else f"{a} / {b}"


def _place(cell: str, concurrency: int) -> str:
    return f"{cell} at concurrency {concurrency}"


def _ci(of: Bounded) -> str:
    text = interval_text(of, 3)
    return "" if text == "-" else f", 95 % CI {text}"


def _xml(text: str) -> str:
    """Text without the characters that no XML file may hold."""
    return _NO_XML.sub("\ufffd", text)


def in_markdown(text: str) -> str:
    """Text of a stranger in Markdown: no link, no image, no HTML, no mention."""
    return _MARKDOWN.sub(r"\\\1", " ".join(_NO_XML.sub("\ufffd", text).split()))
