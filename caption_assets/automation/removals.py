"""Shards that are missing from the source: the limit beyond which they raise an alarm, and the command to confirm them.

A volume that is not mounted looks like a source that has lost all its shards. The sensor ``new_shards`` therefore
reports shards as removed only while few are missing. If more than CAPTION_MAX_REMOVED_FRACTION of the registered shards
are missing, or all, it raises an alarm and reports none, until their number is confirmed or they are back. Shards that
it reported earlier count until they are confirmed or retired, so that losing a few shards at a time raises the alarm
too.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from caption_assets.automation.commands import NotConfirmed, open_instance
from caption_assets.dagster_lib.failures import as_dagster_failure
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.dagster_lib.shard_events import (
    REMOVAL_CONFIRMED,
    REMOVED,
    first_names,
    is_removed,
    observation,
    observed_versions,
)
from caption_assets.resources import build_storage
from caption_assets.settings import Settings, load_settings
from caption_assets.sources.shard import list_shards
from caption_assets.store.root import Root

CHECK = "shards_in_source"
"""Name of the check."""


@dataclass(frozen=True, slots=True)
class Removals:
    """The registered shards that are missing from the source."""

    source: str
    """URL of the source."""
    registered: int
    """Number of registered shards, without those whose removal was confirmed."""
    new: Sequence[str]
    """Missing shards that are not reported as removed."""
    reported: Sequence[str]
    """Shards that are reported as removed, without confirmation."""
    limit: float
    """CAPTION_MAX_REMOVED_FRACTION."""
    is_empty: bool
    """Whether the source has no shards at all."""

    @property
    def unconfirmed(self) -> list[str]:
        """All missing shards whose removal was not confirmed."""
        return sorted([*self.new, *self.reported])

    @property
    def alarm(self) -> str | None:
        """The reason not to report the new ones as removed; None if they may be reported."""
        count = len(self.unconfirmed)
        if not self.new or not (self.is_empty or count > self.limit * self.registered):
            return None
        reason = "it has no shards" if self.is_empty else f"more than CAPTION_MAX_REMOVED_FRACTION={self.limit:g}"
        return (
            f"{count} of {self.registered} registered shards are not in the source {self.source!r} ({reason}): "
            f"{first_names(self.unconfirmed)}. Nothing was changed. Check CAPTION_SOURCE, and that it is mounted; if "
            f"they were removed for good, run `caption-assets removals --confirm {count}`"
        )


def find_removals(
    settings: Settings, source: Root, registered: Collection[str], observed: Mapping[str, str], present: Collection[str]
) -> Removals:
    """The missing shards.

    Args:
        settings: settings with the limit.
        source: the source, for messages.
        registered: all registered shards.
        observed: the last observed version of each.
        present: the shards that are in the source.
    """
    absent = sorted(set(registered) - set(present))
    confirmed = [shard for shard in absent if observed.get(shard) == REMOVAL_CONFIRMED]
    return Removals(
        source.url,
        len(registered) - len(confirmed),
        [shard for shard in absent if not is_removed(observed.get(shard))],
        [shard for shard in absent if observed.get(shard) == REMOVED],
        settings.max_removed_fraction,
        not present,
    )


def removal_evaluation(project: Project, removals: Removals) -> dg.AssetCheckEvaluation:
    """The result of the check, for the UI."""
    return dg.AssetCheckEvaluation(
        asset_key=project.shards,
        check_name=CHECK,
        passed=removals.alarm is None,
        severity=dg.AssetCheckSeverity.ERROR,
        description=removals.alarm,
    )


def build_removal_check(settings: Settings) -> dg.AssetChecksDefinition:
    """The check that no more shards are missing from the source than ``settings`` allow."""
    project = Project.of(settings)

    @dg.asset_check(
        asset=project.shards,
        name=CHECK,
        description="At most CAPTION_MAX_REMOVED_FRACTION of the registered shards are missing from the source. Shards "
        "whose removal was confirmed do not count.",
    )
    def shards_in_source(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        with as_dagster_failure():
            removals = _present_removals(context.instance, settings)
        return dg.AssetCheckResult(passed=removals.alarm is None, description=removals.alarm)

    return shards_in_source


def review_removals(number: int | None) -> str:
    """Open the instance of DAGSTER_HOME, and list or confirm its removals; see ``confirm_removals``."""
    settings = load_settings()
    with open_instance() as instance:
        return confirm_removals(instance, settings, number)


def confirm_removals(instance: dg.DagsterInstance, settings: Settings, number: int | None) -> str:
    """List the missing shards, or report them as removed for good if ``number`` is their number.

    Args:
        instance: the Dagster instance.
        settings: settings of the project and the source.
        number: number of missing shards that the user confirms; None to list them only.

    Returns:
        A message for the user.

    Raises:
        ProjectClash: if the instance has the project's name for another root or source.
        NotConfirmed: if the number differs.
        ShardError: if the source does not exist.
    """
    removals = _present_removals(instance, settings)
    missing = removals.unconfirmed
    names = f": {first_names(missing)}" if missing else ""
    found = f"{len(missing)} registered shards are not in the source {removals.source!r}{names}"
    if number is None:
        remedy = f"; if they were removed for good, run `caption-assets removals --confirm {len(missing)}`"
        return found + (remedy if missing else "")
    if number != len(missing):
        raise NotConfirmed(f"{found}; the number to confirm is {len(missing)}, not {number}")
    for shard in missing:
        event = observation(Project.of(settings), shard, REMOVAL_CONFIRMED)
        instance.report_runless_asset_event(event)
    return f"{found}; reported as removed"


def _present_removals(instance: dg.DagsterInstance, settings: Settings) -> Removals:
    project, storage = Project.of(settings), build_storage(settings)
    check_claim(instance, project, storage)
    source = storage.source()
    present = list_shards(source).keys
    return find_removals(settings, source, project.registered(instance), observed_versions(instance, project), present)
