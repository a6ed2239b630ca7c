"""Several projects on one Dagster instance, each with its own root and source."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from caption_assets.assets.shard_index import REMOVED, observed_versions
from caption_assets.automation.reconcile import compare
from caption_assets.automation.removals import confirm_removals
from caption_assets.dagster_lib.project_claim import ProjectClash
from tests.automation.conftest import Site

pytestmark = pytest.mark.fast

STAGES = ("clip_manifest", "stage1_captions", "stage2_captions")


@pytest.fixture
def sites(tmp_path: Path, instance: dg.DagsterInstance) -> tuple[Site, Site]:
    """The default project and one with a name; they have a shard's name in common."""
    plain = Site(tmp_path / "plain", instance)
    plain.add("a", "b")
    north = Site(tmp_path / "north", instance, project="north")
    north.add("b", "c")
    return plain, north


def test_no_project_calls_anothers_shards_removed(sites: tuple[Site, Site]) -> None:
    for _ in range(3):
        for site in sites:
            site.look()
    assert [site.registered for site in sites] == [["a", "b"], ["b", "c"]]
    for site in sites:
        assert REMOVED not in observed_versions(site.instance, site.project).values()


def test_a_project_requests_only_its_own_shards(sites: tuple[Site, Site]) -> None:
    for site in sites:
        site.look()
        site.fetch_weights()
    plain, north = sites
    for asset in STAGES:
        plain.materialize(asset, "a", "b")
    assert plain.tick() == "2 of 2 shards are captioned"
    [request] = north.requests()
    assert request.asset_selection == [dg.AssetKey(["north", "clip_manifest"])]


def test_a_run_of_one_project_is_not_under_way_for_another(sites: tuple[Site, Site]) -> None:
    for site in sites:
        site.look()
        site.fetch_weights()
    plain, north = sites
    [request] = north.requests()
    north.launch(request, dg.DagsterRunStatus.STARTED)
    [request] = plain.requests()
    assert request.tags["dagster/asset_partition_range_start"] == "a"
    assert request.tags["dagster/asset_partition_range_end"] == "b"
    assert "2 are under way" in str(north.tick())


def test_projects_of_one_name_are_refused_before_a_shard_is_registered(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    first, second = Site(tmp_path / "first", instance), Site(tmp_path / "second", instance)
    first.add("a")
    second.add("b")
    first.look()
    with pytest.raises(dg.Failure, match="set CAPTION_PROJECT to a name that no other project of this instance has"):
        second.look()
    first.look()
    assert first.registered == ["a"]
    assert REMOVED not in observed_versions(instance, first.project).values()


def test_commands_refuse_another_root_than_the_projects(
    sites: tuple[Site, Site],
) -> None:
    plain, north = sites
    for site in sites:
        site.look()
    elsewhere = north.settings.model_copy(update={"project": None})
    with pytest.raises(ProjectClash):
        compare(plain.instance, elsewhere, north.root)
    with pytest.raises(ProjectClash):
        confirm_removals(plain.instance, elsewhere, 1)
    assert REMOVED not in observed_versions(plain.instance, plain.project).values()


def test_a_project_that_gets_a_name_captions_nothing_again(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    before = Site(tmp_path, instance)
    before.add("a", "b")
    before.look()
    before.fetch_weights()
    for asset in STAGES:
        before.materialize(asset, "a", "b")
    after = Site(tmp_path, instance, project="north")
    after.look()
    after.fetch_weights()
    assert after.tick() == "2 of 2 shards are captioned"
