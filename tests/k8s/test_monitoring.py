import importlib.util
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

from caption_assets.dagster_lib.metrics import serve_metrics
from tests.k8s.manifests import K8S, named, render, settings_of

pytestmark = [pytest.mark.fast, pytest.mark.k8s, pytest.mark.representative]

RULES = yaml.safe_load((K8S / "monitoring" / "alerts.yaml").read_text())["spec"]
DASHBOARD = json.loads((K8S / "monitoring" / "dashboard.json").read_text())


def queries() -> Iterator[str]:
    """Every query of the alerts and the dashboard."""
    yield from (rule["expr"] for group in RULES["groups"] for rule in group["rules"])
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])


def engine_metrics() -> set[str]:
    """The metrics that the installed vLLM declares, read from its source: importing it takes half a minute."""
    vllm = importlib.util.find_spec("vllm")
    assert vllm is not None
    assert vllm.submodule_search_locations
    metrics = Path(vllm.submodule_search_locations[0]) / "v1" / "metrics"
    return {name for path in metrics.glob("*.py") for name in re.findall(r'"(vllm:\w+)"', path.read_text())}


def our_metrics() -> set[str]:
    """The metrics that a captioning step declares."""
    with serve_metrics(_free_port()):
        return {family.name for family in REGISTRY.collect() if family.name.startswith("caption_")}


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_every_metric_that_is_asked_for_is_the_engines_or_ours() -> None:
    asked = {name for query in queries() for name in re.findall(r"\b(?:vllm:|caption_)\w+", query)}
    declared = {re.sub(r"_(total|bucket)$", "", name) for name in asked}
    assert {name for name in declared if name.startswith("vllm:")} <= engine_metrics()
    assert {name for name in declared if name.startswith("caption_")} == our_metrics()


def test_prometheus_accepts_the_alerts(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, of Debian's package prometheus")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    done = subprocess.run([promtool, "check", "rules", tmp_path / "rules.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_panel_has_a_place_of_its_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in columns for y in rows}
        assert max(columns) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_prometheus_is_let_in_where_it_asks() -> None:
    monitor = named(render("monitoring"), "PodMonitor")["captioning"]["spec"]
    policy = named(render("base"), "NetworkPolicy")["metrics"]["spec"]
    assert monitor["selector"] == policy["podSelector"]
    ports = [port["port"] for rule in policy["ingress"] for port in rule["ports"]]
    assert ports == [settings_of("base").metrics_port]


def test_grafana_gets_the_dashboard() -> None:
    config = named(render("monitoring"), "ConfigMap")["caption-dashboard"]
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["dashboard.json"]) == DASHBOARD
