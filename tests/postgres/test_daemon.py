"""Tests of Dagster's daemon with sensors, schedule and queue, on the cluster's instance with PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import boto3
import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
from dagster._core.scheduler.instigation import TickStatus

from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.run_request import NAMESPACE, requested_shards
from caption_assets.dagster_lib.shard_events import REMOVED, observed_versions
from caption_assets.settings import Settings
from caption_assets.store.root import Root
from caption_assets.store.tables import Status, read_captions
from tests.automation.conftest import AutomationHarness
from tests.postgres.conftest import Deploy
from tests.postgres.deployment import AUTOMATION, Deployment, until
from tests.stages import STAGE2
from tests.store.server import S3Server

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(1800)]

MAX_TAG_BYTES = 2704 // 4
"""A quarter of the maximum row size in PostgreSQL's B-tree indexes, such as that of Dagster's tags."""
SHARDS_PER_RUN = 64
QUEUED = dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])
BACKFILL = """mutation ($assets: [AssetKeyInput!]!, $shards: [String!]!) { launchPartitionBackfill(backfillParams: {
    assetSelection: $assets, partitionNames: $shards}) { ... on LaunchBackfillSuccess { backfillId } } }"""


def queued_runs(instance: dg.DagsterInstance, asset: str, shards: list[str]) -> dict[str, list[str]]:
    """Ids of the queued runs of an asset, by shard."""
    found: dict[str, list[str]] = {}
    for run in instance.get_runs(QUEUED):
        if dg.AssetKey(asset) in (run.asset_selection or ()):
            for shard in requested_shards(run.tags, shards) or ():
                found.setdefault(shard, []).append(run.run_id)
    return found


def launch_backfill(deployment: Deployment, assets: Iterable[dg.AssetKey], *shards: str) -> str:
    """Launch a backfill as the UI does; returns its id."""
    keys = [{"path": list(key.path)} for key in assets]
    return str(deployment.query(BACKFILL, assets=keys, shards=shards)["launchPartitionBackfill"]["backfillId"])


@pytest.mark.parametrize("shards", [200, pytest.param(1000, marks=pytest.mark.nightly)])
def test_many_shards_are_requested_in_runs_of_64(tmp_path: Path, deploy: Deploy, shards: int) -> None:
    root = tmp_path / "root"
    settings = {
        **AUTOMATION,
        "CAPTION_ROOT": str(root),
        "CAPTION_SHARDS_PER_RUN": str(SHARDS_PER_RUN),
        "CAPTION_BACKFILL_CONCURRENCY": str(shards),
    }
    names = [f"shard-with-a-longer-name-{number:04}" for number in range(shards)]
    (root / "shards").mkdir(parents=True)
    for name in names:
        (root / "shards" / f"{name}.jsonl").write_text("{}")
    deployment = deploy({"captions": settings}, runs_queue_up=True)
    instance = deployment.instance
    harness = AutomationHarness(root, instance)

    until(lambda: len(queued_runs(instance, "clip_manifest", names)) == shards)
    until(lambda: f"{shards} have active runs" in deployment.message("backfill"))
    assert {len(runs) for runs in queued_runs(instance, "clip_manifest", names).values()} == {1}

    harness.store_weights()
    with_manifest = names[: 2 * SHARDS_PER_RUN]
    harness.materialize("clip_manifest", *with_manifest)
    for run in instance.get_runs(QUEUED):
        if set(requested_shards(run.tags, names) or ()) & set(with_manifest):
            instance.report_run_canceled(run)  # its shards have manifests now
    until(lambda: set(queued_runs(instance, "stage2_captions", names)) == set(with_manifest))

    runs = instance.get_runs(QUEUED)
    assert max(sum(name.startswith(NAMESPACE) for name in run.tags) for run in runs) == SHARDS_PER_RUN
    assert max(len(name) + len(value) for run in runs for name, value in run.tags.items()) < MAX_TAG_BYTES
    for name in ("new_shards", "backfill"):
        assert TickStatus.FAILURE not in {tick.status for tick in deployment.ticks(name)}


def test_new_shard_is_captioned_on_the_clusters_instance(
    tmp_path: Path, deploy: Deploy, s3_server: S3Server, sample_data: Path
) -> None:
    root = tmp_path / "root"
    (root / "shards" / "street").mkdir(parents=True)
    shutil.copy(sample_data / "shards" / "sample-folder" / "clip-00.webm", root / "shards" / "street")
    settings = {**AUTOMATION, "CAPTION_ROOT": str(root), "CAPTION_CACHE": str(tmp_path / "cache")}
    deployment, project = (
        deploy({"captions": {**settings, "CAPTION_PROJECT": "north"}}),
        Project.of(Settings(project="north")),
    )
    instance = deployment.instance
    until(lambda: deployment.message("backfill") == "1 of 1 shards are captioned")
    assert {row.status for row in read_captions(Root.open(str(root)), STAGE2.name, "street")} == {Status.OK}

    backfill = launch_backfill(deployment, [project.manifest], "street")
    until(lambda: instance.get_backfill(backfill).status.value == "COMPLETED_SUCCESS")  # type: ignore[union-attr]

    # On an overloaded machine a run may be lost; the values retry it once.
    runs = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS]))
    assets = [key for run in runs for key in run.asset_selection or ()]
    assert set(assets) == {project.weights, project.manifest, *project.stages}
    assert assets.count(project.manifest) == 2  # the schedule's and the backfill's
    assert instance.event_log_storage.get_concurrency_info("gpu").slot_count == 4  # from the values
    store = boto3.client(
        "s3",
        endpoint_url=s3_server.endpoint,
        aws_access_key_id=s3_server.key,
        aws_secret_access_key=s3_server.secret,
        region_name="us-east-1",
    )
    logs = store.list_objects_v2(Bucket="captions", Prefix="compute-logs/")["Contents"]
    assert {run.run_id for run in runs} <= {part for log in logs for part in log["Key"].split("/")}


def test_projects_on_one_instance_do_not_touch_each_others_shards(tmp_path: Path, deploy: Deploy) -> None:
    projects = {
        "plain": {**AUTOMATION, "CAPTION_ROOT": str(tmp_path / "plain")},
        "north": {**AUTOMATION, "CAPTION_ROOT": str(tmp_path / "north"), "CAPTION_PROJECT": "north"},
    }
    for name, shards in {"plain": "ab", "north": "bc"}.items():
        (tmp_path / name / "shards").mkdir(parents=True)
        for shard in shards:
            (tmp_path / name / "shards" / f"{shard}.jsonl").write_text("{}")
    deployment = deploy(projects, runs_queue_up=True)
    instance = deployment.instance
    harnesses = [
        AutomationHarness(tmp_path / "plain", instance),
        AutomationHarness(tmp_path / "north", instance, project="north"),
    ]
    until(lambda: [harness.registered for harness in harnesses] == [["a", "b"], ["b", "c"]])
    seen = len(deployment.ticks("new_shards"))
    until(lambda: len(deployment.ticks("new_shards")) >= seen + 6)
    for harness in harnesses:
        assert REMOVED not in observed_versions(instance, harness.project).values()
    assert TickStatus.FAILURE not in {tick.status for tick in deployment.ticks("new_shards")}

    until(lambda: len(instance.get_runs(QUEUED)) == 4)  # weights and manifests of both
    requested = {
        run.tags["dagster/code_location"]: requested_shards(run.tags, ["a", "b", "c"])
        for run in instance.get_runs(QUEUED)
        if "dagster/asset_partition_range_start" in run.tags
    }
    assert requested == {"plain": ["a", "b"], "north": ["b", "c"]}


def test_backfill_runs_all_stages_of_a_shard_together_while_other_manifests_are_missing(
    tmp_path: Path, deploy: Deploy
) -> None:
    project = Project.of(Settings())
    (tmp_path / "root" / "shards").mkdir(parents=True)
    deployment = deploy({"captions": {"CAPTION_ROOT": str(tmp_path / "root")}}, runs_queue_up=True)
    instance = deployment.instance
    instance.add_dynamic_partitions(project.partitions_name, ["a", "b"])
    launch_backfill(deployment, [project.manifest, *project.stages], "a", "b")
    until(lambda: len(instance.get_runs(QUEUED)) == 2)

    [run] = [run for run in instance.get_runs(QUEUED) if run.tags["dagster/partition"] == "a"]
    manifest = dg.AssetMaterialization(project.manifest, partition="a")
    instance.report_dagster_event(
        DagsterEvent(
            DagsterEventType.ASSET_MATERIALIZATION.value,
            run.job_name,
            event_specific_data=StepMaterializationData(manifest),
        ),
        run.run_id,
    )
    until(lambda: len(instance.get_runs(QUEUED)) == 3)
    [captions] = [run for run in instance.get_runs(QUEUED) if project.manifest not in (run.asset_selection or ())]
    assert captions.asset_selection == set(project.stages)
