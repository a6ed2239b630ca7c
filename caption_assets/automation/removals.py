"""Shards that have gone from the source, and the command that confirms that they have.

    python -m caption_assets.automation.removals                which registered shards are not in the source
    python -m caption_assets.automation.removals --confirm 50   yes, these 50 are gone for good

A mount that is not there looks like a source that has lost all its shards. The sensor ``new_shards`` therefore reports
shards as removed only while few are. Once more than CAPTION_MAX_REMOVED_FRACTION of the registered shards have gone, or
all, it raises an alarm and reports none, until their number is confirmed or they are back. Shards that it has reported
before count until they are confirmed or retired, so that a loss of a few shards at a time raises the alarm too.
Settings come from the environment, and so does DAGSTER_HOME.
"""

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from caption_assets.assets.shard_index import (
    REMOVAL_CONFIRMED,
    REMOVED,
    first_names,
    is_removed,
    observation,
    observed_versions,
)
from caption_assets.dagster_lib.failures import as_dagster_failure
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.errors import CaptionAssetsError
from caption_assets.resources import build_storage
from caption_assets.settings import Settings, load_settings
from caption_assets.sources.shard import list_shards
from caption_assets.store.root import Root

CHECK = "shards_in_source"
"""Name of the check."""


class RemovalError(CaptionAssetsError):
    """A confirmation of something else than what is found."""


@dataclass(frozen=True, slots=True)
class Removals:
    """The registered shards that are not in the source."""

    source: str
    """Its URL."""
    registered: int
    """Shards that are registered, without those whose removal was confirmed."""
    new: Sequence[str]
    """Shards that have gone and are not reported as removed."""
    reported: Sequence[str]
    """Shards that are reported as removed, without confirmation."""
    limit: float
    """CAPTION_MAX_REMOVED_FRACTION."""
    is_empty: bool
    """Whether the source has no shards at all."""

    @property
    def unconfirmed(self) -> list[str]:
        """All that have gone without confirmation."""
        return sorted([*self.new, *self.reported])

    @property
    def alarm(self) -> str | None:
        """Why the new ones must not be reported as removed; None if they may."""
        count = len(self.unconfirmed)
        if not self.new or not (self.is_empty or count > self.limit * self.registered):
            return None
        reason = "none is left" if self.is_empty else f"more than CAPTION_MAX_REMOVED_FRACTION = {self.limit:g}"
        return (
            f"{count} of {self.registered} registered shards are not in the source {self.source!r} ({reason}): "
            f"{first_names(self.unconfirmed)}. Nothing is changed. Check CAPTION_SOURCE, and that it is mounted; if "
            f"they are gone for good, run `python -m caption_assets.automation.removals --confirm {count}`"
        )


def find_removals(
    settings: Settings, source: Root, registered: Collection[str], observed: Mapping[str, str], present: Collection[str]
) -> Removals:
    """The shards that have gone.

    Args:
        settings: name the limit.
        source: for messages.
        registered: all registered shards.
        observed: the version last observed of each.
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
    """What the check says of them, for the UI."""
    return dg.AssetCheckEvaluation(
        asset_key=project.shards,
        check_name=CHECK,
        passed=removals.alarm is None,
        severity=dg.AssetCheckSeverity.ERROR,
        description=removals.alarm,
    )


def build_removal_check(settings: Settings) -> dg.AssetChecksDefinition:
    """The check that no more shards have gone from the source than ``settings`` allow."""
    project = Project(settings.project)

    @dg.asset_check(
        asset=project.shards,
        name=CHECK,
        description="The registered shards are in the source, save at most CAPTION_MAX_REMOVED_FRACTION of them, and "
        "those whose removal was confirmed.",
    )
    def shards_in_source(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        with as_dagster_failure():
            removals = _present_removals(context.instance, settings)
        return dg.AssetCheckResult(passed=removals.alarm is None, description=removals.alarm)

    return shards_in_source


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--confirm", type=int, metavar="NUMBER", help="of shards that are gone for good")
    options = parser.parse_args()
    try:
        settings = load_settings()
        with dg.DagsterInstance.get() as instance:
            print(confirm_removals(instance, settings, options.confirm))
    except CaptionAssetsError as error:
        sys.exit(f"error: {error}")


def confirm_removals(instance: dg.DagsterInstance, settings: Settings, number: int | None) -> str:
    """Report as removed for good what is not in the source, if it is as many shards as the person says.

    Args:
        instance: Dagster's.
        settings: name project and source.
        number: of shards; None to report nothing.

    Returns:
        What was found and done, for the person.

    Raises:
        ProjectClash: if the instance has the project's name for another root.
        RemovalError: if it is another number.
        ShardError: if the source is not there.
    """
    removals = _present_removals(instance, settings)
    gone = removals.unconfirmed
    some = f": {first_names(gone)}" if gone else ""
    found = f"{len(gone)} registered shards are not in the source {removals.source!r}{some}"
    if number is None:
        return f"{found}; say --confirm {len(gone)} if they are gone for good" if gone else found
    if number != len(gone):
        raise RemovalError(f"{found}, and not {number}: look again")
    for shard in gone:
        event = observation(Project(settings.project), shard, REMOVAL_CONFIRMED)
        instance.report_runless_asset_event(event)
    return f"{found}; reported as removed"


def _present_removals(instance: dg.DagsterInstance, settings: Settings) -> Removals:
    project, storage = Project(settings.project), build_storage(settings)
    check_claim(instance, project, storage)
    source = storage.source()
    present = list_shards(source).keys
    return find_removals(settings, source, project.registered(instance), observed_versions(instance, project), present)


if __name__ == "__main__":
    main()
