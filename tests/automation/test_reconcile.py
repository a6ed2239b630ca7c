from __future__ import annotations

import io
import sys

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContext

from caption_assets.automation.commands import NotConfirmed
from caption_assets.automation.differences import Kind
from caption_assets.automation.reconcile import compare, correct
from caption_assets.definitions import build_definitions
from caption_assets.store.tables import CLIP_MANIFEST, publish_captions, publish_manifest
from caption_assets.store.versions import read_versions
from tests.automation.conftest import AutomationHarness
from tests.cli import run_cli
from tests.report.windows import broken
from tests.stages import STAGE2

pytestmark = pytest.mark.fast

TABLES = ("clip_manifest", "stage1_captions", "stage2_captions")


@pytest.fixture
def captioned(harness: AutomationHarness) -> AutomationHarness:
    """Three captioned shards."""
    harness.add("a", "b", "c")
    harness.run_sensor()
    harness.store_weights()
    for table in TABLES:
        harness.materialize(table, "a", "b", "c")
    return harness


def differences(harness: AutomationHarness) -> list[tuple[str, str, Kind]]:
    return [
        (difference.table, difference.shard, difference.kind)
        for difference in compare(harness.instance, harness.settings, harness.root)
    ]


def apply_corrections(harness: AutomationHarness, confirmed: int | None = None) -> None:
    correct(
        harness.instance,
        harness.settings,
        harness.root,
        compare(harness.instance, harness.settings, harness.root),
        confirmed,
    )


def staleness(harness: AutomationHarness, asset: str, shard: str) -> StaleStatus:
    """The stale status of a partition, as in Dagster's UI."""
    graph = build_definitions(harness.settings).resolve_asset_graph()
    context = UiLoadingContext(harness.instance)
    return CachingStaleStatusResolver(harness.instance, graph, context).get_status(harness.project.key(asset), shard)


class UiLoadingContext(LoadingContext):
    """The loading context of one request of the UI."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._loaders: dict[object, object] = {}

    @property
    def instance(self) -> dg.DagsterInstance:
        return self._instance

    @property
    def loaders(self):  # type: ignore[no-untyped-def]
        return self._loaders


def test_correct_log_has_no_differences(captioned: AutomationHarness) -> None:
    assert differences(captioned) == []


def test_missing_tables_are_recorded_as_removed_once_confirmed(captioned: AutomationHarness) -> None:
    captioned.delete_tables("stage2_captions", "b")
    captioned.delete_tables("clip_manifest", "c")
    assert differences(captioned) == [
        ("clip_manifest", "c", Kind.NOT_STORED),
        ("stage2_captions", "b", Kind.NOT_STORED),
    ]
    with pytest.raises(NotConfirmed, match="add --yes 2"):
        apply_corrections(captioned)
    with pytest.raises(NotConfirmed, match="the answer must be 2"):
        apply_corrections(captioned, 1)
    apply_corrections(captioned, 2)
    assert differences(captioned) == []
    assert staleness(captioned, "stage2_captions", "b") is StaleStatus.STALE
    assert staleness(captioned, "clip_manifest", "c") is StaleStatus.STALE


def test_unrecorded_tables_are_recorded_and_fresh_in_the_ui(captioned: AutomationHarness) -> None:
    keys = [captioned.project.manifest, *captioned.project.stages]
    captioned.instance.wipe_assets(keys)
    assert [kind for *_, kind in differences(captioned)] == [Kind.NOT_RECORDED] * 9
    apply_corrections(captioned)
    assert differences(captioned) == []
    assert staleness(captioned, "clip_manifest", "a") is StaleStatus.FRESH
    assert captioned.run_schedule() == "3 of 3 shards are captioned"
    [record] = captioned.instance.fetch_materializations(
        dg.AssetRecordsFilter(captioned.project.manifest, asset_partitions=["a"]), limit=1
    ).records
    assert record.asset_materialization
    metadata = record.asset_materialization.metadata
    assert (metadata["rows_ok"].value, metadata["rows_failed"].value) == (1, 0)


def test_table_of_an_older_input_is_recorded_and_stale_in_the_ui(captioned: AutomationHarness) -> None:
    captioned.add("a", content=b"other")
    captioned.run_sensor()
    captioned.instance.wipe_assets([captioned.project.manifest])
    apply_corrections(captioned)
    assert staleness(captioned, "clip_manifest", "a") is StaleStatus.STALE
    assert staleness(captioned, "clip_manifest", "b") is StaleStatus.FRESH


def test_table_of_an_unknown_input_version_is_stale_in_the_ui(captioned: AutomationHarness) -> None:
    captioned.materialize("clip_manifest", "a", shards="of another instance", recorded=False)
    apply_corrections(captioned)
    assert staleness(captioned, "clip_manifest", "a") is StaleStatus.STALE


def test_replaced_table_is_recorded(captioned: AutomationHarness) -> None:
    captioned.materialize("stage2_captions", "a", version="2", recorded=False)
    assert differences(captioned) == [("stage2_captions", "a", Kind.NOT_RECORDED)]
    apply_corrections(captioned)
    assert differences(captioned) == []


def test_table_that_fails_a_check_is_not_recorded(
    captioned: AutomationHarness, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = read_versions(captioned.root, STAGE2.name, "a")
    assert versions
    publish_captions(captioned.root, STAGE2.name, "a", [], [], versions.file_metadata)
    captioned.instance.wipe_assets([captioned.project.stages[1]])
    apply_corrections(captioned)
    assert "stage2_captions of a: not recorded: " in capsys.readouterr().out
    assert differences(captioned) == [("stage2_captions", "a", Kind.NOT_RECORDED)]


def test_manifest_over_its_limit_is_recorded_once_the_limit_is_raised(
    captioned: AutomationHarness, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = read_versions(captioned.root, CLIP_MANIFEST, "a")
    assert versions
    publish_manifest(captioned.root, "a", [broken("x.mp4")], versions.file_metadata)
    captioned.instance.wipe_assets([captioned.project.manifest])
    apply_corrections(captioned)
    limit = "1 of 1 clips are unreadable, more than CAPTION_MAX_UNREADABLE_FRACTION = 0.1; the first: 'x.mp4': "
    assert f"clip_manifest of a: not recorded: {limit}" in capsys.readouterr().out
    assert differences(captioned) == [(CLIP_MANIFEST, "a", Kind.NOT_RECORDED)]
    captioned.settings = captioned.settings.model_copy(update={"max_unreadable_fraction": 1.0})
    apply_corrections(captioned)
    assert differences(captioned) == []


@pytest.mark.parametrize("content", [b"PAR1", b"x" * 50])
def test_damaged_table_is_recorded_as_removed(captioned: AutomationHarness, content: bytes) -> None:
    captioned.root.write("stage1_captions/shard=a/captions.parquet", content)
    assert differences(captioned) == [("stage1_captions", "a", Kind.DAMAGED)]
    apply_corrections(captioned, 1)
    assert staleness(captioned, "stage1_captions", "a") is StaleStatus.STALE


def test_recorded_tables_of_an_earlier_release_have_no_differences(captioned: AutomationHarness) -> None:
    for table in TABLES:
        captioned.publish(table, "a", None)
    assert differences(captioned) == []
    captioned.instance.wipe_assets([captioned.project.manifest])
    assert ("clip_manifest", "a", Kind.OF_UNKNOWN_VERSION) in differences(captioned)


def test_shards_with_active_runs_are_skipped(captioned: AutomationHarness) -> None:
    captioned.delete_tables("stage2_captions", "b")
    captioned.launch(dg.RunRequest(tags={"dagster/partition": "b"}), dg.DagsterRunStatus.STARTED)
    assert differences(captioned) == []


def test_command_prints_the_differences_and_fixes_them(
    captioned: AutomationHarness, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        assert run_cli("reconcile", *arguments) is None
        return capsys.readouterr().out

    monkeypatch.setenv("CAPTION_ROOT", captioned.root.url)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    captioned.delete_tables("stage2_captions", "b")
    captioned.publish(CLIP_MANIFEST, "not-registered", None)
    output = run()
    assert "stage2_captions: 2 stored\n  1 recorded, not stored: b" in output
    assert "tables of 1 unregistered shards: not-registered" in output
    assert "reconcile --fix" in output
    assert "stage2_captions of b: recorded as removed" in run("--fix", "--yes", "1")
    assert "reconcile --fix" not in run()
