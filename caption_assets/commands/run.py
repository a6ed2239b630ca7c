"""The command that captions shards: registration, weights, manifests and captions, with few engine starts."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain

import dagster as dg

from caption_assets.automation.commands import open_instance
from caption_assets.automation.records import fetch_by_id
from caption_assets.automation.schedule import partition_ranges
from caption_assets.automation.shard_states import ShardStates, has_weights, read_states
from caption_assets.commands.launch import FinishedRun, launch, range_tags
from caption_assets.commands.selection import Need, Selection, check_shards, find_needs
from caption_assets.commands.summary import Summary
from caption_assets.dagster_lib.metadata import ROW_COUNT, count
from caption_assets.dagster_lib.progress import CommandProgress
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.dagster_lib.shard_events import first_names, observation, observed_versions
from caption_assets.errors import CaptionAssetsError
from caption_assets.report.galleries import gallery_address
from caption_assets.resources import Storage, build_storage
from caption_assets.settings import Settings, load_settings
from caption_assets.sources.shard import find_shard, list_shards, refuse_loose_videos, shard_content
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST

MANIFESTS_PER_RUN = 64
"""Maximum number of manifests of a run. A run without an engine takes about a second more than its manifests."""
MAX_RANGE_FACTOR = 16
"""Maximum length of a run's range, as a multiple of the shards to process. A shard that the run leaves out takes
tens of milliseconds, an engine start half a minute or more."""
INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and the number of SIGINT, as shells have it."""


class RunError(CaptionAssetsError):
    """A failure that concerns all shards."""


class _Stopped(Exception):
    """A run failed for a reason that concerns all shards: later runs would fail too."""


def run_shards(selection: Selection, command: str) -> int:
    """Caption the selected shards, and print a summary.

    Args:
        selection: shards and stages.
        command: the command line, which the summary names as the one that resumes.

    Returns:
        The exit status: 0, 1 if a shard was not captioned, ``INTERRUPTED`` after Ctrl-C.

    Raises:
        UnknownName: if the source has no such shard, or the recipe no such stage.
        RunError: if the source has no shards, they cannot be registered, or the weights cannot be fetched.
        CaptionAssetsError: if settings, source, root or instance cannot be used.
    """
    settings = load_settings()
    with open_instance() as instance:
        captioning = _Captioning(instance, settings, Project.of(settings), build_storage(settings), selection)
        captioning.run()
        return captioning.report(command)


@dataclass
class _Captioning:
    """The runs of the command, and what they have made."""

    instance: dg.DagsterInstance
    settings: Settings
    project: Project
    storage: Storage
    selection: Selection
    summary: Summary = field(default_factory=Summary)
    begun: float = field(default_factory=time.monotonic)
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """Time of the command, in the tags of its runs."""

    def run(self) -> None:
        """Caption the shards, until the end, Ctrl-C, or a failure that concerns all of them."""
        self.selection.check_stages(self.project)
        check_claim(self.instance, self.project, self.storage)
        try:
            present = self._register()
            states = self._states()
            if not states.order and not self.summary.failures:
                raise RunError(
                    f"no shards in CAPTION_SOURCE={self.settings.source_url!r}: put each shard there, as a folder of "
                    "clips or a .tar, .parquet or .jsonl file"
                )
            needs = find_needs(self.instance, self.settings, states)
            if absent := [shard for shard in states.order if shard not in present]:
                names = f"{_shards(absent)} missing from the source: {first_names(absent)}"
                self.summary.warnings.append(f"{names}; see `caption-assets removals`")
            self.summary.chosen = chosen = self.selection.choose(states, needs, present)
            if chosen:
                self._fetch_weights()
                made = [shard for shard in chosen if CLIP_MANIFEST in self.selection.tables(shard, states, needs)]
                self._make_manifests(states, made)
                self._make_captions()
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
            self.summary.is_interrupted = True
        except _Stopped:
            pass

    def _register(self) -> Collection[str]:
        """Register new shards and report changed ones, and return the shards of the source.

        If named shards are registered, only their content is compared.
        """
        source, names = self.storage.source(), self.selection.shards
        listing = list_shards(source)
        refuse_loose_videos(source, listing)
        check_shards(names, {shard.key for shard in listing.shards})
        registered = set(self.project.registered(self.instance))
        if names and registered.issuperset(names):
            observed = observed_versions(self.instance, self.project, names)
            for name in names:
                if (version := shard_content(source, find_shard(source, name)).version) != observed.get(name):
                    self.instance.report_runless_asset_event(observation(self.project, name, version))
            return listing.keys
        run = self._launch([self.project.shard_index], {})
        self.summary.failures |= dict(listing.refused)
        reason = run.failure or "the shards cannot be registered"
        if not run.success and not any(reason.startswith(f"{shard}: ") for shard in listing.refused):
            raise RunError(reason)
        return listing.keys

    def _fetch_weights(self) -> None:
        if not has_weights(self.instance, self.project, self.storage.root(), self.settings):
            note(f"fetching the weights of {self.settings.variant.hub_id}")
            run = self._launch([self.project.weights], {})
            if not run.success:
                raise RunError(run.failure or "the weights cannot be fetched")

    def _make_manifests(self, states: ShardStates, shards: Collection[str]) -> None:
        done, begun = 0, time.monotonic()
        for some, requested in plan_runs(states.registered, shards, MANIFESTS_PER_RUN):
            self._launch([self.project.manifest], self._tags(self.project.manifest, some, requested), requested)
            done += len(requested)
            left = time_left(time.monotonic() - begun, done, len(shards))
            note(f"windows of {done} of {_shards(shards)} listed{left}")

    def _make_captions(self) -> None:
        """Make the captions of all chosen shards that have a manifest, as few engine starts as the settings allow."""
        states = self._states()
        needs = find_needs(self.instance, self.settings, states)
        ready = [
            shard for shard in self.summary.chosen if shard in states.manifests and shard not in self.summary.failures
        ]
        tables = {shard: set(self.selection.tables(shard, states, needs)) - {CLIP_MANIFEST} for shard in ready}
        self.summary.unchanged = [shard for shard in ready if not tables[shard]]
        wanted = {shard: made for shard, made in tables.items() if made}
        ranges = plan_runs(states.registered, wanted, self.settings.shards_per_run)
        rows = self._rows(states, wanted)
        before, total, begun = 0, sum(rows.values()), time.monotonic()
        for number, (some, requested) in enumerate(ranges, 1):
            made = set[str]().union(*(wanted[shard] for shard in requested))
            assets = [stage for stage in self.project.stages if stage.path[-1] in made]
            seconds = time.monotonic() - begun if before else 0.0
            left = time_left(seconds, before, total)
            names = " to ".join(dict.fromkeys([requested[0], requested[-1]]))
            done = f"{before} of {total} windows done{left}"
            note(f"run {number} of {len(ranges)}: {_shards(requested)}, {names}; {done}")
            progress = CommandProgress(before, total, len(ranges) - number, seconds)
            self._launch(assets, self._tags(assets[-1], some, requested) | progress.tags, requested, assets[-1])
            before += sum(rows[shard] for shard in requested)

    def _tags(self, asset: dg.AssetKey, some: Sequence[str], requested: Sequence[str]) -> dict[str, str]:
        return range_tags(asset, some, requested, self.time)

    def _rows(self, states: ShardStates, wanted: Mapping[str, Collection[str]]) -> dict[str, int]:
        """The number of windows that runs process for each shard: the manifest's rows, once for each model."""
        models = [{stage.name for stage in model.own_stages} for model in self.settings.caption_recipe.steps]
        rows = dict.fromkeys(wanted, 0)
        events = [states.records[CLIP_MANIFEST][shard].event for shard in wanted]
        for record in chain.from_iterable(fetch_by_id(self.instance, self.project.manifest, events)):
            if record.asset_materialization and (shard := str(record.partition_key)) in wanted:
                passes = sum(bool(stages.intersection(wanted[shard])) for stages in models)
                rows[shard] = passes * count(record.asset_materialization.metadata, ROW_COUNT)
        return rows

    def _states(self) -> ShardStates:
        return read_states(self.instance, self.project, self.storage.root_to_read())

    def _launch(
        self,
        assets: Sequence[dg.AssetKey],
        tags: dict[str, str],
        shards: Collection[str] = (),
        captions: dg.AssetKey | None = None,
    ) -> FinishedRun:
        """Execute a run over ``shards``; with the last asset of ``captions``, count their windows.

        Raises:
            KeyboardInterrupt: if a signal ended the run.
            _Stopped: if it failed for a reason that concerns all shards.
        """
        run = launch(self.instance, assets, tags)
        self.summary.add(run, shards, captions)
        if run.is_interrupted:
            raise KeyboardInterrupt
        if shards and not run.success and not run.reasons(shards):
            failed = set(shards) - run.materialized(assets[-1]).keys()
            self.summary.failures |= dict.fromkeys(sorted(failed), run.failure or "the run failed")
            raise _Stopped
        return run

    def report(self, command: str) -> int:
        """Print the summary, and return the exit status."""
        for line in self.summary.failed_shards():
            print(line)
        if not self.summary.chosen and not self.summary.is_interrupted:
            print(self._describe_nothing())
            if self.summary.warnings:
                print(f"warnings  {self.summary.describe_warnings()}")
            return 0 if self.summary.is_complete else 1
        seconds = time.monotonic() - self.begun
        root, stages = self.storage.root_to_read(), list(self.project.inputs)
        print(f"captions  {self.summary.counts(seconds)}")
        print(f"tables    {', '.join(root.address(stage) for stage in stages)}")
        print(f"gallery   {self._gallery(root)}")
        print(f"warnings  {self.summary.describe_warnings()}")
        print(f"next      {self._next_step(command)}")
        if self.summary.is_interrupted:
            return INTERRUPTED
        return 0 if self.summary.is_complete else 1

    def _gallery(self, root: Root) -> str:
        """The gallery of the first captioned shard, as a link that a browser opens if there is one."""
        if not (shard := next(iter(self.summary.windows), None)):
            return "none"
        return gallery_address(root, shard, self.settings.link_url)

    def _describe_nothing(self) -> str:
        """The message if no shard is selected."""
        states = self._states()
        stale = len(find_needs(self.instance, self.settings, states)[Need.STALE])
        hint = f"; {stale} of them were made with other settings: caption-assets run --stale" if stale else ""
        return f"nothing to do: {len(states.captioned)} of {len(states.order)} shards are captioned{hint}"

    def _next_step(self, command: str) -> str:
        if self.summary.is_interrupted:
            return f"finished windows are kept; the same command resumes: {command}"
        if self.summary.failures:
            is_refused = self.summary.failures.keys().isdisjoint(self.summary.chosen)
            again = command if is_refused else "caption-assets run --failed"
            return f"remove the causes of the failures, then: {again}"
        if self.summary.not_reached:
            return f"see the warnings, then: {command}"
        return "caption-assets export --all" + ("" if self.settings.dataset else " --format webdataset")


def plan_runs(
    registered: Sequence[str], wanted: Collection[str], limit: int
) -> list[tuple[Sequence[str], Sequence[str]]]:
    """The runs over the wanted shards: for each its range, and the shards in it to process, at most ``limit``."""
    ranges = partition_ranges(registered, set(wanted), set(registered), limit, MAX_RANGE_FACTOR)
    return [(some, [shard for shard in some if shard in wanted]) for some in ranges]


def time_left(seconds: float, done: int, total: int) -> str:
    """The remaining time as the end of a message, if ``done`` of ``total`` items took ``seconds``: ", 0:01:00 left"."""
    if not 0 < done < total:
        return ""
    return f", {timedelta(seconds=round(seconds / done * (total - done)))} left"


def _shards(shards: Sized) -> str:
    return f"{len(shards)} shard{'s' * (len(shards) != 1)}"


def note(text: str) -> None:
    """A line about the progress of the command, in the form of the console log of runs."""
    print(f"{datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)
