"""The schedule that requests what is missing: manifests first, then captions, several shards a run."""

import time
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import dagster as dg

from caption_assets.automation.differences import Kind, find_differences, resolve
from caption_assets.automation.shard_states import (
    ShardStates,
    active_shards,
    has_active_run,
    has_weights,
    predicted_work,
    read_states,
)
from caption_assets.automation.status import schedule_status
from caption_assets.dagster_lib.failures import as_dagster_failure
from caption_assets.dagster_lib.private import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    is_valid_cron_string,
)
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.run_request import count_requests, request_tags
from caption_assets.kubernetes.pods import caption_run_config
from caption_assets.resources import build_storage
from caption_assets.settings import Settings, SettingsError
from caption_assets.sources.shard import list_shards
from caption_assets.store.tables import CLIP_MANIFEST

SPAN = 4
"""A run may span this many times as many shards as it may make, the others whole: these cost it some milliseconds, and
another run costs the start of a process, a pod or an engine."""
WEIGHTS_TAG = ".model"
"""Name of the request for the weights, which have no shards; a shard has no such name."""
MAX_COMPARED = 500
"""Shards whose stored tables one tick compares with their records: three small reads each."""
RECORDING_SECONDS = 15.0
"""After which a tick records no more stored tables; the next one goes on there. Dagster ends a tick after 60."""
SHOWN = 5
"""Shards that were given up and that a tick's message names."""


def build_backfill(settings: Settings) -> dg.ScheduleDefinition:
    """The schedule as ``settings`` say.

    Raises:
        SettingsError: if the cron schedule is none.
    """
    if not is_valid_cron_string(settings.backfill_cron):
        raise SettingsError(
            f"CAPTION_BACKFILL_CRON={settings.backfill_cron!r} is no cron schedule: give five fields, such as "
            "'*/10 * * * *'"
        )

    project = Project(settings.project)

    @dg.schedule(
        name="backfill",
        description="Requests manifests and captions that are missing, outdated or failed, up to a limit of attempts.",
        cron_schedule=settings.backfill_cron,
        default_status=schedule_status(settings),
        target=dg.AssetSelection.assets(project.weights, project.manifest, *project.stages),
    )
    def backfill(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        with as_dagster_failure():
            plan = _build_plan(context, settings)
        return list(plan.run_requests()) or dg.SkipReason(plan.message)

    return backfill


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one tick requests."""

    instance: dg.DagsterInstance
    settings: Settings
    project: Project
    states: ShardStates
    under_way: frozenset[str]
    absent: frozenset[str]
    """Shards that are not in the source at this moment, and are not known to be removed."""
    later: frozenset[str]
    """Shards with stored tables that a later tick compares with their records."""
    has_weights: bool
    at: str
    """The tick."""

    def run_requests(self) -> Iterator[dg.RunRequest]:
        """The runs. Captions come first: they are nearer to being done."""
        room = self.settings.backfill_concurrency - len(self.under_way)
        manifest, stages, weights = self.project.manifest, self.project.stages, self.project.weights
        if self.has_weights:
            captions = self._wanted(stages[-1], self.states.without_captions, room)
            room -= len(captions)
            yield from self._ranges(stages, captions, self.states.captioned)
        elif not has_active_run(self.instance, weights) and (model := self._open(weights, {WEIGHTS_TAG: self.model})):
            tags = request_tags(weights, model, self.at)
            yield dg.RunRequest(run_key=f"{self.at} {weights.to_user_string()}", asset_selection=[weights], tags=tags)
        manifests = self._wanted(manifest, self.states.without_manifest, room)
        yield from self._ranges([manifest], manifests, self.states.manifests.keys())

    @property
    def model(self) -> str:
        """The model whose weights are wanted, with its adapter."""
        return self.settings.weights_code

    def _ranges(
        self, assets: Sequence[dg.AssetKey], wanted: Mapping[str, str], passable: AbstractSet[str]
    ) -> Iterator[dg.RunRequest]:
        for shards in stretches(self.states.registered, wanted.keys(), passable, self.settings.shards_per_run):
            asked = {shard: wanted[shard] for shard in shards if shard in wanted}
            yield dg.RunRequest(
                run_key=f"{self.at} {assets[-1].to_user_string()} {shards[0]}",
                asset_selection=assets,
                run_config=self._run_config(assets[-1], list(asked)),
                tags={
                    ASSET_PARTITION_RANGE_START_TAG: shards[0],
                    ASSET_PARTITION_RANGE_END_TAG: shards[-1],
                    **request_tags(assets[-1], asked, self.at),
                },
            )

    def _run_config(self, asset: dg.AssetKey, shards: Sequence[str]) -> dict[str, Any]:
        """A pod as large as its work, where captions are made in one."""
        if asset == self.project.manifest or self.settings.executor != "k8s":
            return {}
        manifests = self.states.records[CLIP_MANIFEST]
        work = predicted_work(self.instance, self.project, [manifests[shard].event for shard in shards])
        return caption_run_config(self.settings, *work) if work else {}

    @property
    def requestable(self) -> list[str]:
        """Shards that lack an asset and can be requested."""
        manifests = self._open(self.project.manifest, self.states.without_manifest)
        captions = self._open(self.project.stages[-1], self.states.without_captions)
        return [shard for shard in self.states.order if shard in manifests or shard in captions]

    def _wanted(self, asset: dg.AssetKey, missing: Mapping[str, str], room: int) -> dict[str, str]:
        """As many of the shards that lack an asset as there is room for, with the version of its input."""
        return dict(islice(self._open(asset, missing).items(), max(room, 0)))

    def _open(self, asset: dg.AssetKey, missing: Mapping[str, str]) -> dict[str, str]:
        """Those of ``missing`` that can be requested and have attempts left."""
        held = self.under_way | self.absent | self.later
        waiting = {shard: version for shard, version in missing.items() if shard not in held}
        requests = count_requests(self.instance, asset, waiting)
        return {shard: version for shard, version in waiting.items() if requests[shard] < self.settings.shard_attempts}

    @property
    def message(self) -> str:
        """Why nothing is requested."""
        states = self.states
        missing = {
            self.project.manifest: states.without_manifest,
            self.project.stages[-1]: states.without_captions,
        }
        given_up = [
            f"{shard} ({asset.to_user_string()})"
            for asset, shards in missing.items()
            for shard in shards.keys() - self._open(asset, shards).keys() - self.under_way - self.absent - self.later
        ]
        words = [f"{len(states.captioned)} of {len(states.order)} shards are captioned"]
        if self.under_way:
            words.append(f"{len(self.under_way)} are under way")
        if self.absent:
            words.append(f"{len(self.absent)} are not in the source now: {', '.join(sorted(self.absent)[:SHOWN])}")
        if self.later:
            words.append(f"{len(self.later)} have stored tables that a later tick looks at")
        if given_up:
            words.append(
                f"{len(given_up)} were given up after {self.settings.shard_attempts} runs (CAPTION_SHARD_ATTEMPTS), "
                f"until they change or are materialized by hand: {', '.join(sorted(given_up)[:SHOWN])}"
            )
        return "; ".join(words)


def _build_plan(context: dg.ScheduleEvaluationContext, settings: Settings) -> _Plan:
    """The plan of a tick, once stored tables that nobody has recorded are recorded.

    Raises:
        ShardError: if the source is not there.
        RootEmpty: if the root is empty, and there are records of tables in it.
        StoreError: if source or root cannot be listed.
    """
    instance, at = context.instance, context.scheduled_execution_time.isoformat()
    storage, project = build_storage(settings), Project(settings.project)
    root, under_way = storage.root_to_read(), active_shards(instance, project)
    states = read_states(instance, project, root)
    absent = frozenset(states.order) - list_shards(storage.source()).keys
    ready = has_weights(instance, project, root, settings)
    plan = _Plan(instance, settings, project, states, under_way, absent, frozenset(), ready, at)
    candidates = [shard for shard in plan.requestable if any(shard in shards for shards in states.stored.values())]
    differences = find_differences(root, candidates[:MAX_COMPARED], states.stored, states.records)
    unrecorded = [one for one in differences if one.kind is Kind.NOT_RECORDED]
    shards = list(dict.fromkeys(one.shard for one in unrecorded))
    later = set(candidates[MAX_COMPARED:])
    deadline = time.monotonic() + RECORDING_SECONDS
    for shard in shards:
        mine = [one for one in unrecorded if one.shard == shard]
        if time.monotonic() > deadline:
            later.add(shard)
            continue
        for one, result in resolve(instance, settings, root, mine):
            context.log.info(f"{one.table} of {one.shard} is stored and was not recorded: {result}")
    if unrecorded:
        states = read_states(instance, project, root)
    return replace(plan, states=states, later=frozenset(later))


def stretches(
    order: Sequence[str], wanted: AbstractSet[str], passable: AbstractSet[str], most: int
) -> Iterator[list[str]]:
    """Cut ``order`` into ranges for runs.

    Args:
        order: all partitions.
        wanted: each of these is in one range.
        passable: these may lie between others in a range, others may not.
        most: of those wanted, in one range; which spans at most ``SPAN`` times as many.
    """
    stretch: list[str] = []
    count = 0
    gap: list[str] = []
    for shard in order:
        if shard not in wanted:
            gap.append(shard)
            continue
        bridged = len(stretch) + len(gap) < SPAN * most and all(other in passable for other in gap)
        if stretch and (count == most or not bridged):
            yield stretch
            stretch, count = [], 0
        stretch += [*gap, shard] if stretch else [shard]
        count += 1
        gap = []
    if stretch:
        yield stretch
