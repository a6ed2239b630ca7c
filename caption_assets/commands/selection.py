"""The selection of a command: shards by name or by state, and the tables that each of them needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from itertools import islice

import dagster as dg

from caption_assets.automation.failed_attempts import read_failed_attempts
from caption_assets.automation.shard_states import ShardStates
from caption_assets.automation.shard_status import present_code, weights_version
from caption_assets.captioning.open_shard import WEIGHTS_ASSET
from caption_assets.dagster_lib.project import Project
from caption_assets.errors import CaptionAssetsError, number_of
from caption_assets.settings import Settings
from caption_assets.store.tables import CLIP_MANIFEST


class UnknownName(CaptionAssetsError):
    """A shard or stage that does not exist."""


class Need(StrEnum):
    """A reason why shards need a run."""

    MISSING = "missing"
    """A table is missing, or was made from other inputs than the present ones."""
    STALE = "stale"
    """A table was made with other settings or weights than the present ones."""
    FAILED = "failed"
    """The last run over the shard failed or was interrupted."""


Tables = Mapping[str, Collection[str]]
"""Tables to make, by shard."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The shards and stages that a command line names."""

    shards: Sequence[str] = ()
    """Names of shards. They are processed in any state: failed windows are retried, and the others are reused."""
    states: Collection[Need] = (Need.MISSING,)
    """States of the shards to process, if none are named."""
    stages: Sequence[str] = ()
    """Names of the stages to process; all if empty."""
    limit: int | None = None
    """Maximum number of shards."""

    def check_stages(self, project: Project) -> None:
        """Check the names of the stages.

        Raises:
            UnknownName: if the recipe has no such stage.
        """
        for stage in self.stages:
            if stage not in project.inputs:
                raise UnknownName(_unknown("stage", stage, list(project.inputs), "the recipe"))

    def choose(self, states: ShardStates, needs: Mapping[Need, Tables], present: Collection[str]) -> list[str]:
        """The shards to process, in order of registration.

        Args:
            states: the states of all shards.
            needs: the tables that need a run, by state.
            present: the shards in the source; no others are chosen.
        """
        if self.shards:
            wanted = set(self.shards)
        else:
            wanted = {
                shard
                for state in self.states
                for shard, tables in needs[state].items()
                if self._tables(states.project, tables, tables if state is Need.MISSING else ())
            }
        return list(islice((shard for shard in states.order if shard in wanted and shard in present), self.limit))

    def tables(self, shard: str, states: ShardStates, needs: Mapping[Need, Tables]) -> list[str]:
        """The tables to make for a chosen shard, each after its inputs. A named shard needs all captions."""
        missing = set(needs[Need.MISSING].get(shard, ()))
        wanted = {table for found in needs.values() for table in found.get(shard, ())}
        if self.shards:
            wanted.update(states.captions)
        # What a missing stage needs is requested too: its failed rows are retried, and the others are reused.
        wanted.update(states.project.with_upstream(missing))
        # What needs a stage that is made again would be outdated afterwards.
        wanted.update(stage for stage in states.captions if wanted.intersection(states.project.with_upstream([stage])))
        found = self._tables(states.project, wanted, missing)
        return [table for table in states.project.tables if table in found]

    def _tables(self, project: Project, tables: Collection[str], missing: Collection[str]) -> set[str]:
        """Those of ``tables`` that the selected stages are or need."""
        if not self.stages:
            return set(tables)
        needed = set(project.with_upstream(self.stages)) & set(missing)
        return (set(tables) & {CLIP_MANIFEST, *self.stages}) | needed


def check_shards(names: Iterable[str], known: Collection[str], place: str = "CAPTION_SOURCE") -> None:
    """Check the names of shards.

    Args:
        names: the names.
        known: the shards that there are.
        place: what has them, for the message.

    Raises:
        UnknownName: if there is no such shard.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UnknownName("\n".join(_unknown("shard", name, sorted(known), place) for name in unknown))


def _unknown(kind: str, name: str, known: Sequence[str], place: str) -> str:
    near = get_close_matches(name, known)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    count = f"{place} has {number_of(len(known), kind)}"
    first = "" if near or not known else f": {', '.join(known[:5])}{', …' * (len(known) > 5)}"
    return f"unknown {kind} {name!r}: {guess}{count}{first}"


def find_needs(instance: dg.DagsterInstance, settings: Settings, states: ShardStates) -> dict[Need, Tables]:
    """The tables that need a run, by state."""
    project = states.project
    missing = {
        shard: [stage for stage, captioned in states.captions.items() if shard not in captioned]
        for shard in states.without_captions
    }
    missing |= {shard: list(project.tables) for shard in states.without_manifest}
    failed: defaultdict[str, list[str]] = defaultdict(list)
    for table, attempts in read_failed_attempts(instance, project, states.order).items():
        for shard in attempts:
            failed[shard].append(table)
    code = {table: basis.code for table, basis in present_code(settings).items()}
    stale = _stale(states, code, weights_version(instance, project))
    return {Need.MISSING: missing, Need.STALE: stale, Need.FAILED: failed}


def _stale(states: ShardStates, code: Mapping[str, str], weights: str | None) -> Tables:
    """The tables of recorded shards that were made with other settings or weights."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for table, records in states.records.items():
        for shard, record in records.items():
            made_with = record.versions and record.versions.inputs.get(WEIGHTS_ASSET)
            has_other_weights = bool(weights and made_with and made_with != weights)
            if record.versions and (record.versions.code != code[table] or has_other_weights):
                found[shard].append(table)
    return found
