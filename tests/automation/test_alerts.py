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

from caption_assets.assets.shard_index import observation
from caption_assets.automation.alerts import (
    AlertError,
    Alerts,
    build_failure_alerts,
    build_overdue_alerts,
    find_overdue,
)
from caption_assets.settings import Settings
from tests.automation.conftest import Site

pytestmark = pytest.mark.fast

LOG = logging.getLogger(__name__)
STAGES = ("clip_manifest", "stage1_captions", "stage2_captions")


@contextmanager
def webhook(status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """A server that takes what Slack's incoming webhooks take: its address, and the texts that have come."""
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
            yield f"http://127.0.0.1:{server.server_port}/services/T0/B0/not-to-be-told", texts
        finally:
            server.shutdown()


def test_an_alert_reaches_the_webhook() -> None:
    with webhook() as (url, texts):
        Alerts(Settings(alert_webhook=url)).send("trouble", LOG)
    assert texts == ["trouble"]


def test_without_a_webhook_an_alert_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    Alerts(Settings()).send("trouble", LOG)
    assert "trouble" in caplog.text


def test_a_webhook_that_refuses_is_told_of_without_its_address() -> None:
    with webhook(404) as (url, _), pytest.raises(AlertError, match="answers 404") as refused:
        Alerts(Settings(alert_webhook=url)).send("trouble", LOG)
    with pytest.raises(AlertError, match="cannot be reached") as unreachable:
        Alerts(Settings(alert_webhook=url)).send("trouble", LOG)
    for error in (refused.value, unreachable.value):
        assert "not-to-be-told" not in str(error)


def test_the_webhook_is_in_no_definition_that_the_ui_shows() -> None:
    settings = Settings(alert_webhook="http://127.0.0.1:1/not-to-be-told")
    assert "not-to-be-told" not in repr(settings)


def test_a_failed_run_is_told_of_with_its_first_cause(instance: dg.DagsterInstance) -> None:
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


def limited(site: Site, hours: float | None) -> Settings:
    return site.settings.model_copy(update={"overdue_hours": hours})


def test_the_shard_that_waits_longest_is_overdue_until_it_is_captioned(site: Site) -> None:
    site.add("a", "b")
    site.look()
    assert find_overdue(site.instance, limited(site, None)) is None
    assert find_overdue(site.instance, limited(site, 1.0)) is None
    overdue = find_overdue(site.instance, limited(site, 1e-9))
    assert overdue is not None
    assert overdue.shard == "a"
    for asset in STAGES:
        site.materialize(asset, "a", "b")
    assert find_overdue(site.instance, limited(site, 1e-9)) is None  # however long ago that was


def test_a_shard_that_changes_waits_from_then_on(site: Site) -> None:
    site.add("a", "b")
    site.look()
    site.instance.report_runless_asset_event(observation(site.project, "a", "other"))
    overdue = find_overdue(site.instance, limited(site, 1e-9))
    assert overdue is not None
    assert overdue.shard == "b"


def test_an_overdue_shard_is_told_of_once_and_shown_as_a_failed_check(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    with webhook() as (url, texts):
        site = Site(tmp_path, instance, overdue_hours=1e-9, alert_webhook=url)
        site.add("a")
        site.look()
        cursor, passed = None, []
        for _ in range(4):
            with dg.build_sensor_context(instance, cursor=cursor) as context:
                result = build_overdue_alerts(site.settings)(context)
            assert isinstance(result, dg.SensorResult)
            cursor = result.cursor or cursor  # as the daemon does
            passed += [event.passed for event in result.asset_events if isinstance(event, dg.AssetCheckEvaluation)]
            if len(passed) == 1 and texts:
                for asset in STAGES:
                    site.materialize(asset, "a")
    assert passed == [False, True]
    assert len(texts) == 1
    assert texts[0].startswith("shard 'a' has waited 0.0 h for its captions, longer than CAPTION_OVERDUE_HOURS")
