from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dagster as dg
import pytest

from caption_assets.automation.alerts import (
    AlertError,
    Alerts,
    build_failure_alerts,
    build_overdue_alerts,
    find_overdue,
)
from caption_assets.dagster_lib.shard_events import observation
from caption_assets.settings import Settings
from tests.automation.conftest import AutomationHarness

pytestmark = pytest.mark.fast

LOG = logging.getLogger(__name__)
STAGES = ("clip_manifest", "stage1_captions", "stage2_captions")


@contextmanager
def webhook(status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """A server like Slack's incoming webhooks: its URL, and the texts that it received."""
    texts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            texts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/services/T0/B0/secret-path", texts
        finally:
            server.shutdown()


def test_alert_reaches_the_webhook() -> None:
    with webhook() as (url, texts):
        Alerts(Settings(alert_webhook=url)).send("some text", LOG)
    assert texts == ["some text"]


def test_alert_without_webhook_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    Alerts(Settings()).send("some text", LOG)
    assert "some text" in caplog.text


def test_webhook_error_does_not_contain_the_url() -> None:
    with webhook(404) as (url, _), pytest.raises(AlertError, match="answers 404") as refused:
        Alerts(Settings(alert_webhook=url)).send("some text", LOG)
    with pytest.raises(AlertError, match="cannot reach the URL") as unreachable:
        Alerts(Settings(alert_webhook=url)).send("some text", LOG)
    for error in (refused.value, unreachable.value):
        assert "secret-path" not in str(error)


def test_webhook_url_is_hidden_in_settings() -> None:
    settings = Settings(alert_webhook="http://127.0.0.1:1/secret-path")
    assert "secret-path" not in repr(settings)


def test_failure_alert_contains_the_first_cause(instance: dg.DagsterInstance) -> None:
    @dg.op
    def fails() -> None:
        raise dg.Failure("1 of 3 shards failed: a: the file is empty")

    @dg.job
    def job() -> None:
        fails()

    result = job.execute_in_process(instance=instance, raise_on_error=False)
    with webhook() as (url, texts):
        sensor = build_failure_alerts(Settings(alert_webhook=url))
        context = dg.build_run_status_sensor_context(
            "run_failures", result.get_run_failure_event(), instance, result.dagster_run
        ).for_run_failure()
        sensor(context)
    assert texts == [f"Run {result.run_id} failed: 1 of 3 shards failed: a: the file is empty"]


def with_limit(harness: AutomationHarness, hours: float | None) -> Settings:
    return harness.settings.model_copy(update={"overdue_hours": hours})


def test_longest_waiting_shard_is_overdue_until_captioned(harness: AutomationHarness) -> None:
    harness.add("a", "b")
    harness.run_sensor()
    assert find_overdue(harness.instance, with_limit(harness, None)) is None
    assert find_overdue(harness.instance, with_limit(harness, 1.0)) is None
    overdue = find_overdue(harness.instance, with_limit(harness, 1e-9))
    assert overdue is not None
    assert overdue.shard == "a"
    for asset in STAGES:
        harness.materialize(asset, "a", "b")
    assert find_overdue(harness.instance, with_limit(harness, 1e-9)) is None


def test_changed_shard_waits_from_its_change(harness: AutomationHarness) -> None:
    harness.add("a", "b")
    harness.run_sensor()
    harness.instance.report_runless_asset_event(observation(harness.project, "a", "other"))
    overdue = find_overdue(harness.instance, with_limit(harness, 1e-9))
    assert overdue is not None
    assert overdue.shard == "b"


def test_overdue_shard_sends_one_alert_and_fails_the_check(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    with webhook() as (url, texts):
        harness = AutomationHarness(tmp_path, instance, overdue_hours=1e-9, alert_webhook=url)
        harness.add("a")
        harness.run_sensor()
        cursor, passed = None, []
        for _ in range(4):
            with dg.build_sensor_context(instance, cursor=cursor) as context:
                result = build_overdue_alerts(harness.settings)(context)
            assert isinstance(result, dg.SensorResult)
            cursor = result.cursor or cursor  # as the daemon does
            passed += [event.passed for event in result.asset_events if isinstance(event, dg.AssetCheckEvaluation)]
            if len(passed) == 1 and texts:
                for asset in STAGES:
                    harness.materialize(asset, "a")
    assert passed == [False, True]
    assert len(texts) == 1
    assert texts[0].startswith("shard 'a' has waited 0.0 h for its captions, longer than CAPTION_OVERDUE_HOURS=")
