"""The schedule that requests what is missing: manifests first, then captions, several shards a run."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG
from dagster._utils.schedules import is_valid_cron_string

from caption_assets.assets.pods import caption_run_config
from caption_assets.automation.shard_states import (
    MANIFEST,
    STAGES,
    WEIGHTS,
    Requests,
    ShardStates,
    count_requests,
    has_weights,
    predicted_work,
    read_states,
    request_tag,
    shards_under_way,
)
from caption_assets.automation.status import schedule_status
from caption_assets.settings import Settings, SettingsError

SPAN = 4
"""A run may span this many times as many shards as it may make, the others whole: these cost it some milliseconds, and
another run costs the start of a process, a pod or an engine."""
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

    @dg.schedule(
        name="backfill",
        description="Requests manifests and captions that are missing, outdated or failed, up to a limit of attempts.",
        cron_schedule=settings.backfill_cron,
        default_status=schedule_status(settings),
        target=dg.AssetSelection.assets(WEIGHTS, MANIFEST, *STAGES),
    )
    def backfill(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        plan = _Plan(
            context.instance,
            settings,
            read_states(context.instance),
            shards_under_way(context.instance),
            count_requests(context.instance),
            has_weights(context.instance, settings.variant.folder),
            str(context.scheduled_execution_time),
        )
        return list(plan.run_requests()) or dg.SkipReason(plan.message)

    return backfill


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one tick requests."""

    instance: dg.DagsterInstance
    settings: Settings
    states: ShardStates
    under_way: frozenset[str]
    requests: Requests
    has_weights: bool
    at: str
    """The tick."""

    def run_requests(self) -> Iterator[dg.RunRequest]:
        """The runs. Captions come first: they are nearer to being done."""
        room = self.settings.backfill_shards - len(self.under_way)
        weights = {"": self.settings.variant.folder}
        if self.has_weights:
            captions = self._wanted(STAGES[-1], self.states.without_captions, room)
            room -= len(captions)
            yield from self._ranges(STAGES, captions, self.states.captioned)
        elif self._may_ask(WEIGHTS, weights):
            yield dg.RunRequest(run_key=self.at, asset_selection=[WEIGHTS], tags=request_tag(WEIGHTS, weights, self.at))
        manifests = self._wanted(MANIFEST, self.states.without_manifest, room)
        yield from self._ranges([MANIFEST], manifests, self.states.manifests.keys())

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
                    **request_tag(assets[-1], asked, self.at),
                },
            )

    def _run_config(self, asset: dg.AssetKey, shards: Sequence[str]) -> dict[str, Any]:
        """A pod as large as its work, where captions are made in one."""
        if asset == MANIFEST or self.settings.executor != "k8s":
            return {}
        work = predicted_work(self.instance, [self.states.made[shard] for shard in shards])
        return caption_run_config(self.settings, *work)

    def _wanted(self, asset: dg.AssetKey, missing: Mapping[str, str], room: int) -> dict[str, str]:
        """As many of the shards that lack an asset as there is room for, with the version of its input."""
        wanted = [
            (shard, version)
            for shard, version in missing.items()
            if shard not in self.under_way and self._may_ask(asset, {shard: version})
        ]
        return dict(wanted[: max(room, 0)])

    def _may_ask(self, asset: dg.AssetKey, shards: Mapping[str, str]) -> bool:
        asked = (self.requests[asset.to_user_string(), shard, version] for shard, version in shards.items())
        return max(asked) < self.settings.shard_attempts

    @property
    def message(self) -> str:
        """Why nothing is requested."""
        states = self.states
        missing = ((MANIFEST, states.without_manifest), (STAGES[-1], states.without_captions))
        given_up = [
            f"{shard} ({asset.to_user_string()})"
            for asset, shards in missing
            for shard, version in shards.items()
            if shard not in self.under_way and not self._may_ask(asset, {shard: version})
        ]
        words = [f"{len(states.captioned)} of {len(states.order)} shards are captioned"]
        if self.under_way:
            words.append(f"{len(self.under_way)} are under way")
        if given_up:
            words.append(
                f"{len(given_up)} were given up after {self.settings.shard_attempts} runs (CAPTION_SHARD_ATTEMPTS), "
                f"until they change or are materialized by hand: {', '.join(given_up[:SHOWN])}"
            )
        return "; ".join(words)


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
