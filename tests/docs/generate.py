"""Writes the parts of the documents that are made from the code: `python -m tests.docs.generate`."""

import re

from loadtest.metrics.catalogue import METRICS
from tests.support.documents import ROOT

DOCUMENT = ROOT / "docs/metrics.md"
BLOCK = re.compile(r"(?<=<!-- generated: metrics -->\n\n).*?(?=\n<!-- /generated -->)", re.DOTALL)


def metrics_table():
    """One row per metric of a level, in the order of the page."""
    rows = [f"| `{key}` | {metric.definition} |\n" for key, metric in METRICS.items()]
    return "".join(["| key | definition |\n|---|---|\n", *rows])


def generated(text):
    """A document with its generated block made anew."""
    return BLOCK.sub(lambda _: metrics_table(), text)


if __name__ == "__main__":
    DOCUMENT.write_text(generated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
