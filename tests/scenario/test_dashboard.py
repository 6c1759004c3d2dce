"""The Grafana dashboard: it asks for what Locust and the servers export, by the shape that Grafana documents.

`make test-dashboard` runs its queries in a real Prometheus. No Grafana has opened it: neither Debian nor PyPI has one.
"""

import re

import pytest
import yaml

from loadtest.simulator.core.behaviour import behaviour
from loadtest.simulator.core.counters import Observations
from loadtest.simulator.core.engine import Engine, EngineConfig
from loadtest.simulator.http import exposition
from tests.support.dashboard import DASHBOARD, PANELS, alternatives, patterns, queries
from tests.support.documents import ROOT

# Of Locust's OpenTelemetry (tests/scenario/test_observability.py), as Prometheus names them: dots become underscores, a unit
# a suffix, one in braces none.
OF_LOCUST = {"locust_client_duration_seconds", "locust_users_count"}


def exported(engine):
    """Names in the /metrics of a simulated engine at which everything has happened once."""
    running = Engine(EngineConfig(behaviour=behaviour(engine), kv_tokens=4096), lambda work: 0.01)
    running.totals.prefix_hit_tokens = running.totals.prefix_query_tokens = running.totals.preemptions = 1
    seen = Observations(engine.startswith("vllm"))
    seen.finished["stop"] = seen.finished_prompt_tokens = seen.finished_tokens = 1
    for histogram in (seen.ttft, seen.itl, seen.e2e, seen.queue):
        histogram.observe(0.1)
    return set(re.findall(r"^([\w:]+)", exposition.render(running, seen, "m"), re.MULTILINE))


def test_every_metric_of_the_dashboard_is_exported():
    known = OF_LOCUST | exported("vllm-sim") | exported("sglang-sim")
    variable = DASHBOARD["templating"]["list"][1]["query"]["query"]
    asked = {
        one
        for text in (*(query for *_, query in queries()), variable)
        for name in patterns(text)
        for one in alternatives(name)
    }
    assert asked - known == set()
    assert {name.partition(":")[0] for name in asked} == {"vllm", "sglang", *OF_LOCUST}


def test_both_engines_have_every_panel_of_the_servers():
    for title, letter, query in queries():
        if "locust_" not in query:
            names = {one for name in patterns(query) for one in alternatives(name)}
            assert {name.partition(":")[0] for name in names} == {"vllm", "sglang"}, (title, letter)


def test_rows_of_locust_are_those_that_scenarios_fire():
    fired = {"TTFT", "time per token", "first answer", "final answer"}  # as in test_observability.py
    assert {name for *_, query in queries() for name in re.findall(r'[{,]name="([^"]+)"', query)} == fired


def test_the_dashboard_has_the_shape_that_grafana_documents():
    """The classic JSON model: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/."""
    keys = {"uid", "title", "tags", "timezone", "editable", "graphTooltip", "panels", "time", "templating", "annotations",
            "refresh", "schemaVersion", "version", "links", "description"}  # fmt: skip
    assert DASHBOARD.keys() == keys
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identities)) == len(identities)
    for panel in PANELS:
        assert panel.keys() == {
            "id",
            "type",
            "title",
            "description",
            "datasource",
            "gridPos",
            "fieldConfig",
            "options",
            "targets",
        }
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for variable in DASHBOARD["templating"]["list"]:
        assert variable["type"] in ("datasource", "query")


def test_no_two_panels_are_in_one_place():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_prometheus_is_told_where_a_server_is():
    told = yaml.safe_load((ROOT / "launchers/grafana/prometheus.yaml").read_text())
    assert [one["static_configs"][0]["targets"] for one in told["scrape_configs"]] == [["127.0.0.1:8000"]]


@pytest.mark.parametrize(("pattern", "names"), [("a:x", ["a:x"]), ("(a|b):x|c:y", ["a:x", "b:x", "c:y"])])
def test_alternatives(pattern, names):
    assert alternatives(pattern) == names
