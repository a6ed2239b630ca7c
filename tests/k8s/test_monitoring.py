import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

from caption_assets.dagster_lib.metrics import serve_metrics
from tests.k8s.manifests import K8S, named, render, settings_of
from tests.processes import free_port

pytestmark = [pytest.mark.fast, pytest.mark.k8s, pytest.mark.representative]

RULES = yaml.safe_load((K8S / "monitoring" / "alerts.yaml").read_text())["spec"]
DASHBOARD = json.loads((K8S / "monitoring" / "dashboard.json").read_text())


def queries() -> Iterator[str]:
    """All queries of the alerts and the dashboard."""
    yield from (rule["expr"] for group in RULES["groups"] for rule in group["rules"])
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])


def engine_metrics() -> set[str]:
    """Metrics that the installed vLLM declares, read from its source, since importing it takes half a minute."""
    vllm = importlib.util.find_spec("vllm")
    assert vllm is not None
    assert vllm.submodule_search_locations
    metrics = Path(vllm.submodule_search_locations[0]) / "v1" / "metrics"
    return {name for path in metrics.glob("*.py") for name in re.findall(r'"(vllm:\w+)"', path.read_text())}


def our_metrics() -> set[str]:
    """Metrics that a captioning step declares."""
    with serve_metrics(free_port()):
        return {family.name for family in REGISTRY.collect() if family.name.startswith("caption_")}


def test_queried_metrics_exist() -> None:
    queried = {name for query in queries() for name in re.findall(r"\b(?:vllm:|caption_)\w+", query)}
    declared = {re.sub(r"_(total|bucket)$", "", name) for name in queried}
    assert {name for name in declared if name.startswith("vllm:")} <= engine_metrics()
    assert {name for name in declared if name.startswith("caption_")} == our_metrics()


def test_prometheus_accepts_the_alerts(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, from Debian's package prometheus")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    done = subprocess.run([promtool, "check", "rules", tmp_path / "rules.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in columns for y in rows}
        assert max(columns) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_network_policy_admits_prometheus() -> None:
    monitor = named(render("monitoring"), "PodMonitor")["captioning"]["spec"]
    policy = named(render("base"), "NetworkPolicy")["metrics"]["spec"]
    assert monitor["selector"] == policy["podSelector"]
    ports = [port["port"] for rule in policy["ingress"] for port in rule["ports"]]
    assert ports == [settings_of("base").metrics_port]


def test_dashboard_is_provided_to_grafana() -> None:
    config = named(render("monitoring"), "ConfigMap")["caption-dashboard"]
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["dashboard.json"]) == DASHBOARD
