"""Alerts and dashboard ask for what the operator exports, in expressions that Prometheus can read. Needs no cluster."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import promql_parser
import pytest

from charts.generate import CHART
from rewardfl_operator.metrics import Metrics
from tests.chart.chart import MUCH, NAMESPACE, one, render
from tests.cluster.paths import REPOSITORY

pytestmark = pytest.mark.slow

DASHBOARD: dict[str, Any] = json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
LABELS_OF_TARGETS = {"namespace", "pod", "service", "job", "container", "endpoint", "instance"}
"""What Prometheus adds to every sample."""


@pytest.fixture(scope="module")
def alerts() -> list[dict[str, Any]]:
    return alerts_of(MUCH)


def alerts_of(values: dict[str, Any]) -> list[dict[str, Any]]:
    return list(one(render(values), "PrometheusRule")["spec"]["groups"][0]["rules"])


class OneJob:
    """What the operator shows at each scrape, with something of everything in it."""

    def jobs_by_phase(self) -> Mapping[tuple[str, str], int]:
        return {("default", "Training"): 1}

    def queue_depth(self) -> int:
        return 0

    def watch_ages(self) -> Mapping[str, float]:
        return {"pods": 1.0}


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """The labels of every sample that the operator can export, by its name."""
    metrics = Metrics()
    metrics.observe(OneJob())
    metrics.reconcile_errors.labels(cause="api").inc()
    metrics.api_requests.labels(verb="get", kind="pods", code="200").inc()
    metrics.api_retries.labels(reason="429").inc()
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    return {sample.name: {*sample.labels} for sample in samples}


def expressions(alerts: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for alert in alerts:
        yield alert["alert"], alert["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")


def selectors(expression: str) -> list[Any]:
    """The vector selectors of an expression. ValueError when Prometheus could not read it."""
    found: list[Any] = []

    def visit(node: Any) -> bool:
        found.extend([node] if isinstance(node, promql_parser.VectorSelector) else [])
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def test_they_ask_for_metrics_and_labels_that_the_operator_exports(
    alerts: list[dict[str, Any]], exported: dict[str, set[str]]
) -> None:
    seen = list(expressions(alerts))
    for title, expression in seen:
        grouped = {name for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for name in group.split(", ") if name}
        found = selectors(expression)
        assert found, title
        assert {selector.name for selector in found} <= exported.keys(), title
        for selector in found:
            own = exported[selector.name] | LABELS_OF_TARGETS
            assert {matcher.name for matcher in selector.matchers.matchers} <= own, f"{title}: {expression}"
        known = LABELS_OF_TARGETS.union(*(exported[selector.name] for selector in found))
        assert grouped <= known, f"{title}: {expression}"
    assert len(seen) > len(alerts) + 20


def test_every_metric_of_the_operators_own_is_on_the_dashboard(exported: dict[str, set[str]]) -> None:
    text = json.dumps(DASHBOARD)
    own = {name.removesuffix("_created") for name in exported if name.startswith("rewardfl_")}
    own -= {name for name in own if name.endswith(("_sum", "_count", "_bucket")) or f"{name}_total" in own}

    assert {name for name in own if name not in text} == set()


def test_an_alert_says_how_bad_it_is_and_what_to_do(alerts: list[dict[str, Any]]) -> None:
    assert len({alert["alert"] for alert in alerts}) == len(alerts) >= 6
    documentation = (REPOSITORY / "docs" / "installation.md").read_text(encoding="utf-8")
    for alert in alerts:
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert alert["labels"]["team"] == "vision"
        assert {"summary", "description"} == alert["annotations"].keys()
        assert f"`{alert['alert']}`" in documentation


def test_alerts_look_at_the_operator_of_their_own_release(alerts: list[dict[str, Any]]) -> None:
    for alert in alerts:
        of_operator = [selector for selector in selectors(alert["expr"]) if selector.name != "rewardfl_jobs"]
        for selector in of_operator:
            assert ("namespace", NAMESPACE) in [(matcher.name, matcher.value) for matcher in selector.matchers.matchers]


def test_alerts_are_left_out_by_name_and_the_one_about_leaders_where_none_is_elected(
    alerts: list[dict[str, Any]],
) -> None:
    rule = {"enabled": True, "disabledAlerts": ["RewardFLJobsFailing"]}
    found = alerts_of({"metrics": {"prometheusRule": rule}, "leaderElection": {"enabled": False}})

    missing = {alert["alert"] for alert in alerts} - {alert["alert"] for alert in found}
    assert missing == {"RewardFLJobsFailing", "RewardFLOperatorNoLeader"}


def test_the_dashboard_reaches_grafanas_sidecar_unchanged() -> None:
    maps = [item for item in render(MUCH) if item["kind"] == "ConfigMap" and item["metadata"]["name"].endswith("-dashboard")]

    (found,) = maps
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"]["grafana_folder"] == "Training"
    assert json.loads(found["data"]["rewardfl.json"]) == DASHBOARD


def test_the_dashboards_panels_do_not_overlap_and_use_its_data_source() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel.get("targets", []))
