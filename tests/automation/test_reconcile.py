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
from caption_assets.captioning.stages import STAGE2
from caption_assets.definitions import build_definitions
from caption_assets.store.tables import CLIP_MANIFEST, publish_captions
from caption_assets.store.versions import read_versions
from tests.automation.conftest import Site
from tests.cli import run_cli

pytestmark = pytest.mark.fast

TABLES = ("clip_manifest", "stage1_captions", "stage2_captions")


@pytest.fixture
def captioned(site: Site) -> Site:
    """Three captioned shards."""
    site.add("a", "b", "c")
    site.look()
    site.fetch_weights()
    for table in TABLES:
        site.materialize(table, "a", "b", "c")
    return site


def differences(site: Site) -> list[tuple[str, str, Kind]]:
    return [(one.table, one.shard, one.kind) for one in compare(site.instance, site.settings, site.root)]


def resolve(site: Site, answer: int | None = None) -> None:
    correct(site.instance, site.settings, site.root, compare(site.instance, site.settings, site.root), answer)


def staleness(site: Site, asset: str, shard: str) -> StaleStatus:
    """What Dagster's UI shows of a partition."""
    graph = build_definitions(site.settings).resolve_asset_graph()
    context = Loading(site.instance)
    return CachingStaleStatusResolver(site.instance, graph, context).get_status(site.project.key(asset), shard)


class Loading(LoadingContext):
    """What a request of the UI keeps while it is answered."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._loaders: dict[object, object] = {}

    @property
    def instance(self) -> dg.DagsterInstance:
        return self._instance

    @property
    def loaders(self):  # type: ignore[no-untyped-def]
        return self._loaders


def test_a_log_that_is_right_has_no_differences(captioned: Site) -> None:
    assert differences(captioned) == []


def test_lost_tables_are_reported_as_removed_once_their_number_is_confirmed(captioned: Site) -> None:
    captioned.lose("stage2_captions", "b")
    captioned.lose("clip_manifest", "c")
    assert differences(captioned) == [
        ("clip_manifest", "c", Kind.NOT_STORED),
        ("stage2_captions", "b", Kind.NOT_STORED),
    ]
    with pytest.raises(NotConfirmed, match="add --yes 2"):
        resolve(captioned)
    with pytest.raises(NotConfirmed, match="the answer must be 2"):
        resolve(captioned, 1)
    resolve(captioned, 2)
    assert differences(captioned) == []
    assert staleness(captioned, "stage2_captions", "b") is StaleStatus.STALE
    assert staleness(captioned, "clip_manifest", "c") is StaleStatus.STALE


def test_unrecorded_tables_are_reported_and_fresh_in_the_ui(captioned: Site) -> None:
    keys = [captioned.project.manifest, *captioned.project.stages]
    captioned.instance.wipe_assets(keys)
    assert [kind for *_, kind in differences(captioned)] == [Kind.NOT_RECORDED] * 9
    resolve(captioned)
    assert differences(captioned) == []
    assert staleness(captioned, "clip_manifest", "a") is StaleStatus.FRESH
    assert captioned.tick() == "3 of 3 shards are captioned"
    [record] = captioned.instance.fetch_materializations(
        dg.AssetRecordsFilter(captioned.project.manifest, asset_partitions=["a"]), limit=1
    ).records
    assert record.asset_materialization
    metadata = record.asset_materialization.metadata
    assert (metadata["rows_ok"].value, metadata["rows_failed"].value) == (1, 0)


def test_a_table_that_is_of_an_older_input_is_reported_and_stale_in_the_ui(captioned: Site) -> None:
    captioned.add("a", content=b"other")
    captioned.look()
    captioned.instance.wipe_assets([captioned.project.manifest])
    resolve(captioned)
    assert staleness(captioned, "clip_manifest", "a") is StaleStatus.STALE
    assert staleness(captioned, "clip_manifest", "b") is StaleStatus.FRESH


def test_an_input_whose_version_no_event_has_makes_a_table_stale_in_the_ui(captioned: Site) -> None:
    captioned.materialize("clip_manifest", "a", shards="of another instance", recorded=False)
    resolve(captioned)
    assert staleness(captioned, "clip_manifest", "a") is StaleStatus.STALE


def test_a_table_that_was_replaced_by_another_is_reported(captioned: Site) -> None:
    captioned.materialize("stage2_captions", "a", version="2", recorded=False)
    assert differences(captioned) == [("stage2_captions", "a", Kind.NOT_RECORDED)]
    resolve(captioned)
    assert differences(captioned) == []


def test_a_table_that_a_check_does_not_let_pass_is_not_reported(
    captioned: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = read_versions(captioned.root, STAGE2.name, "a")
    assert versions
    publish_captions(captioned.root, STAGE2.name, "a", [], [], versions.facts)
    captioned.instance.wipe_assets([captioned.project.stages[1]])
    resolve(captioned)
    assert "stage2_captions of a: not reported: " in capsys.readouterr().out
    assert differences(captioned) == [("stage2_captions", "a", Kind.NOT_RECORDED)]


@pytest.mark.parametrize("content", [b"PAR1", b"x" * 50])
def test_a_damaged_table_is_reported_as_removed(captioned: Site, content: bytes) -> None:
    captioned.root.write("stage1_captions/shard=a/captions.parquet", content)
    assert differences(captioned) == [("stage1_captions", "a", Kind.DAMAGED)]
    resolve(captioned, 1)
    assert staleness(captioned, "stage1_captions", "a") is StaleStatus.STALE


def test_tables_of_an_earlier_release_stand_if_they_are_recorded(captioned: Site) -> None:
    for table in TABLES:
        captioned.publish(table, "a", None)
    assert differences(captioned) == []
    captioned.instance.wipe_assets([captioned.project.manifest])
    assert ("clip_manifest", "a", Kind.OF_UNKNOWN_VERSION) in differences(captioned)


def test_shards_of_runs_under_way_are_left_out(captioned: Site) -> None:
    captioned.lose("stage2_captions", "b")
    captioned.launch(dg.RunRequest(tags={"dagster/partition": "b"}), dg.DagsterRunStatus.STARTED)
    assert differences(captioned) == []


def test_command_prints_the_differences_and_fixes_them(
    captioned: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        assert run_cli("reconcile", *arguments) is None
        return capsys.readouterr().out

    monkeypatch.setenv("CAPTION_ROOT", captioned.root.url)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    captioned.lose("stage2_captions", "b")
    captioned.publish(CLIP_MANIFEST, "not-registered", None)
    told = run()
    assert "stage2_captions: 2 stored\n  1 recorded, not stored: b" in told
    assert "tables of 1 unregistered shards: not-registered" in told
    assert "reconcile --fix" in told
    assert "stage2_captions of b: reported as removed" in run("--fix", "--yes", "1")
    assert "reconcile --fix" not in run()
