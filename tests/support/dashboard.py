"""The dashboard of launchers/grafana: its queries, and the metrics that they name."""

from __future__ import annotations

import json
import re

from tests.support.documents import ROOT

DASHBOARD = json.loads((ROOT / "launchers/grafana/dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {"$__rate_interval": "1m", "$server": ".*"}  # what Grafana puts in their place


def queries():
    """Title of the panel, letter of the query, and the query as Prometheus gets it."""
    for panel in PANELS:
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in VARIABLES.items():
                text = text.replace(name, value)
            yield panel["title"], target["refId"], text


def patterns(query):
    """What names metrics in a query: names, or expressions of several."""
    return re.findall(r'__name__=~"([^"]+)"', query) + re.findall(r"\blocust_\w+", query)


def alternatives(pattern):
    """The names that a pattern stands for.

    >>> alternatives("(a|b):x|c:y")
    ['a:x', 'b:x', 'c:y']
    """
    found = []
    for one in re.findall(r"(?:\([^)]*\)|[^|(])+", pattern):
        prefixes = re.match(r"\(([^)]*)\)", one)
        found += [one] if prefixes is None else [f"{prefix}{one[prefixes.end() :]}" for prefix in prefixes[1].split("|")]
    return found
