"""The schedule that requests missing manifests and captions, several shards a run."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import dagster as dg

from caption_assets.automation.differences import Kind, find_differences, resolve
from caption_assets.automation.shard_states import (
    Missing,
    ShardStates,
    active_shards,
    has_active_run,
    has_weights,
    predicted_work,
    read_states,
)
from caption_assets.automation.status import schedule_status
from caption_assets.dagster_lib.failures import as_dagster_failure
from caption_assets.dagster_lib.private_dagster import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    is_valid_cron_string,
)
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.dagster_lib.run_request import count_requests, request_tags
from caption_assets.dagster_lib.shard_events import first_names
from caption_assets.kubernetes.pods import caption_run_config
from caption_assets.resources import build_storage
from caption_assets.settings import Settings, SettingsError
from caption_assets.sources.shard import list_shards
from caption_assets.store.tables import CLIP_MANIFEST

MAX_RANGE_FACTOR = 4
"""Maximum length of a run's partition range, as a multiple of CAPTION_SHARDS_PER_RUN. The other shards in the range are
complete and take a few milliseconds each. Another run would take the start of a process, a pod or an engine."""
WEIGHTS_REQUEST = ".model"
"""Key of the request for the weights, in place of a shard. No shard can have this name."""
MAX_COMPARED = 500
"""Maximum number of shards that one tick compares with their records. Each takes a small read for each table."""
RECORDING_SECONDS = 15.0
"""Time limit for recording stored tables in one tick; the next tick continues. Dagster ends a tick after 60 s."""


def build_backfill(settings: Settings) -> dg.ScheduleDefinition:
    """The schedule.

    Raises:
        SettingsError: if CAPTION_BACKFILL_CRON is not a cron schedule.
    """
    if not is_valid_cron_string(settings.backfill_cron):
        raise SettingsError(
            f"CAPTION_BACKFILL_CRON={settings.backfill_cron!r} is not a cron schedule: set it to five fields, such as "
            "'*/10 * * * *'"
        )

    project = Project.of(settings)

    @dg.schedule(
        name="backfill",
        description="Requests missing, outdated and failed manifests and captions, up to CAPTION_SHARD_ATTEMPTS times.",
        cron_schedule=settings.backfill_cron,
        default_status=schedule_status(settings),
        target=dg.AssetSelection.assets(project.weights, project.manifest, *project.stages),
    )
    def backfill(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        with as_dagster_failure():
            tick = _evaluate(context, settings)
        return list(tick.run_requests()) or dg.SkipReason(tick.message)

    return backfill


@dataclass(frozen=True, slots=True)
class _BackfillTick:
    """The state of a project at one tick, and the runs to request."""

    instance: dg.DagsterInstance
    settings: Settings
    project: Project
    states: ShardStates
    active: frozenset[str]
    """Shards with active runs."""
    absent: frozenset[str]
    """Shards that are missing from the source now, and not reported as removed."""
    deferred: frozenset[str]
    """Shards with stored tables that a later tick compares with their records."""
    has_weights: bool
    time: str
    """Scheduled time of the tick."""

    def run_requests(self) -> Iterator[dg.RunRequest]:
        """The runs to request. Captions come before manifests, because they complete shards."""
        capacity = self.settings.backfill_concurrency - len(self.active)
        weights = self.project.weights
        if self.has_weights:
            captions = self._wanted(self.states.without_captions, capacity)
            capacity -= len(captions)
            yield from self._ranges(captions, self.states.captioned)
        elif requests := self._weights_request():
            tags = request_tags(weights, requests, self.time)
            yield dg.RunRequest(run_key=f"{self.time} {weights.to_user_string()}", asset_selection=[weights], tags=tags)
        manifests = self._wanted(self.states.without_manifest, capacity)
        yield from self._ranges(manifests, self.states.manifests.keys())

    def _weights_request(self) -> dict[str, str]:
        """The request for the weights of the model and its adapter; empty if a run is active or no attempt is left."""
        if has_active_run(self.instance, self.project.weights):
            return {}
        return self._with_attempts(self.project.weights, {WEIGHTS_REQUEST: self.settings.weights_code})

    def _ranges(self, wanted: Mapping[str, Missing], complete: AbstractSet[str]) -> Iterator[dg.RunRequest]:
        """The runs over the wanted shards, each for all tables that one of its shards lacks.

        A range may contain complete shards as well.
        """
        for shards in partition_ranges(self.states.registered, wanted.keys(), complete, self.settings.shards_per_run):
            requested = {shard: wanted[shard] for shard in shards if shard in wanted}
            missing = {table for one in requested.values() for table in one.tables}
            assets = [self.project.key(table) for table in self.project.tables if table in missing]
            yield dg.RunRequest(
                run_key=f"{self.time} {assets[-1].to_user_string()} {shards[0]}",
                asset_selection=assets,
                run_config=self._run_config(assets[-1], list(requested)),
                tags={
                    ASSET_PARTITION_RANGE_START_TAG: shards[0],
                    ASSET_PARTITION_RANGE_END_TAG: shards[-1],
                    **self._request_tags(requested),
                },
            )

    def _request_tags(self, requested: Mapping[str, Missing]) -> dict[str, str]:
        tags: dict[str, str] = {}
        for asset, versions in self._by_asset(requested).items():
            tags |= request_tags(asset, versions, self.time)
        return tags

    def _run_config(self, asset: dg.AssetKey, shards: Sequence[str]) -> dict[str, Any]:
        """The pod's size for a caption run on Kubernetes."""
        if asset == self.project.manifest or self.settings.executor != "k8s":
            return {}
        manifests = self.states.records[CLIP_MANIFEST]
        work = predicted_work(self.instance, self.project, [manifests[shard].event for shard in shards])
        return caption_run_config(self.settings, *work) if work else {}

    @property
    def requestable(self) -> list[str]:
        """Shards that lack an asset and may be requested."""
        manifests = self._requestable(self.states.without_manifest)
        captions = self._requestable(self.states.without_captions)
        return [shard for shard in self.states.order if shard in manifests or shard in captions]

    def _wanted(self, missing: Mapping[str, Missing], capacity: int) -> dict[str, Missing]:
        """The shards to request, with their missing tables: at most ``capacity``."""
        return dict(islice(self._requestable(missing).items(), max(capacity, 0)))

    @property
    def _excluded(self) -> frozenset[str]:
        return self.active | self.absent | self.deferred

    def _requestable(self, missing: Mapping[str, Missing]) -> dict[str, Missing]:
        """The shards in ``missing`` that may be requested and have attempts left."""
        excluded = self._excluded
        waiting = {shard: one for shard, one in missing.items() if shard not in excluded}
        left = {
            shard
            for asset, versions in self._by_asset(waiting).items()
            for shard in self._with_attempts(asset, versions)
        }
        return {shard: one for shard, one in waiting.items() if shard in left}

    def _by_asset(self, missing: Mapping[str, Missing]) -> dict[dg.AssetKey, dict[str, str]]:
        """The shards with the versions of their inputs, by the asset by which attempts are counted."""
        found: defaultdict[dg.AssetKey, dict[str, str]] = defaultdict(dict)
        for shard, one in missing.items():
            found[self.project.key(one.last)][shard] = one.version
        return found

    def _with_attempts(self, asset: dg.AssetKey, versions: Mapping[str, str]) -> dict[str, str]:
        """The shards in ``versions`` that have attempts left."""
        requests = count_requests(self.instance, asset, versions)
        return {shard: version for shard, version in versions.items() if requests[shard] < self.settings.shard_attempts}

    @property
    def message(self) -> str:
        """The reason why nothing is requested."""
        states = self.states
        missing = {**states.without_manifest, **states.without_captions}
        exhausted = [
            f"{shard} ({self.project.key(missing[shard].last).to_user_string()})"
            for shard in missing.keys() - self._requestable(missing).keys() - self._excluded
        ]
        parts = [f"{len(states.captioned)} of {len(states.order)} shards are captioned"]
        if self.active:
            parts.append(f"{len(self.active)} have active runs")
        if self.absent:
            parts.append(f"{len(self.absent)} are missing from the source: {first_names(sorted(self.absent))}")
        if self.deferred:
            parts.append(f"{len(self.deferred)} are compared with their stored tables by a later tick")
        if exhausted:
            parts.append(
                f"{len(exhausted)} are not retried after {self.settings.shard_attempts} runs (CAPTION_SHARD_ATTEMPTS) "
                f"until they change or are materialized manually: {first_names(sorted(exhausted))}"
            )
        return "; ".join(parts)


def _evaluate(context: dg.ScheduleEvaluationContext, settings: Settings) -> _BackfillTick:
    """Read the state of the project, after recording stored tables that Dagster has no record of.

    Raises:
        ProjectClash: if the instance has the project's name for another root or source.
        ShardError: if the source does not exist.
        RootEmpty: if the root is empty, although tables are recorded.
        StoreError: if source or root cannot be listed.
    """
    instance, tick_time = context.instance, context.scheduled_execution_time.isoformat()
    storage, project = build_storage(settings), Project.of(settings)
    check_claim(instance, project, storage)
    root, active = storage.root_to_read(), active_shards(instance, project)
    states = read_states(instance, project, root)
    absent = frozenset(states.order) - list_shards(storage.source()).keys
    weights = has_weights(instance, project, root, settings)
    tick = _BackfillTick(instance, settings, project, states, active, absent, frozenset(), weights, tick_time)
    candidates = [shard for shard in tick.requestable if any(shard in shards for shards in states.stored.values())]
    differences = find_differences(root, candidates[:MAX_COMPARED], states.stored, states.records)
    unrecorded = [one for one in differences if one.kind is Kind.NOT_RECORDED]
    shards = list(dict.fromkeys(one.shard for one in unrecorded))
    deferred = set(candidates[MAX_COMPARED:])
    deadline = time.monotonic() + RECORDING_SECONDS
    for shard in shards:
        unresolved = [one for one in unrecorded if one.shard == shard]
        if time.monotonic() > deadline:
            deferred.add(shard)
            continue
        for difference, result in resolve(instance, settings, root, unresolved):
            context.log.info(f"{difference.table} of {shard} is stored and was not recorded: {result}")
    if unrecorded:
        states = read_states(instance, project, root)
    return replace(tick, states=states, deferred=frozenset(deferred))


def partition_ranges(
    order: Sequence[str],
    wanted: AbstractSet[str],
    complete: AbstractSet[str],
    limit: int,
    max_factor: int = MAX_RANGE_FACTOR,
) -> Iterator[list[str]]:
    """Cut ``order`` into ranges for runs.

    Args:
        order: all partitions.
        wanted: partitions to process; each is in exactly one range.
        complete: partitions that a range may contain as well; no others may lie in a range.
        limit: maximum number of wanted partitions in a range.
        max_factor: maximum length of a range, as a multiple of ``limit``.
    """
    current: list[str] = []
    count = 0
    gap: list[str] = []
    for shard in order:
        if shard not in wanted:
            gap.append(shard)
            continue
        fits = len(current) + len(gap) < max_factor * limit and all(other in complete for other in gap)
        if current and (count == limit or not fits):
            yield current
            current, count = [], 0
        current += [*gap, shard] if current else [shard]
        count += 1
        gap = []
    if current:
        yield current
