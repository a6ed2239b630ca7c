"""The log of a caption run: reports each shard to Dagster when it is captioned, published or failed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from threading import Lock

import dagster as dg

from caption_assets.captioning.open_shard import Published, PublishedTable
from caption_assets.captioning.shard_queue import RunObserver
from caption_assets.captioning.stages import Stage
from caption_assets.checks.asset_checks import Finding, raise_errors
from caption_assets.checks.stored_tables import StoredShard
from caption_assets.dagster_lib.caption_metadata import Cost, caption_metadata
from caption_assets.dagster_lib.check_events import check_results, check_with_history, log_findings
from caption_assets.dagster_lib.engine_time import EngineClock, EngineTime
from caption_assets.dagster_lib.failures import ShardFailures, shards_failed
from caption_assets.dagster_lib.metadata import ERROR, Metadata, link
from caption_assets.dagster_lib.progress import CommandProgress, WindowProgress
from caption_assets.dagster_lib.project import Project, table_of
from caption_assets.dagster_lib.provenance import input_tags, input_version_tags, is_input_tag, output_tags, version_of
from caption_assets.errors import CaptionAssetsError, as_project_error, printable
from caption_assets.report.dashboard import DashboardUpdates
from caption_assets.report.galleries import gallery_address
from caption_assets.report.gallery import write_gallery
from caption_assets.report.shard_summary import write_summary
from caption_assets.settings import Settings
from caption_assets.store.root import Root

Inputs = Mapping[dg.AssetKey, dict[str, str]]
"""Version tags by upstream asset."""


class InputChanged(CaptionAssetsError):
    """A manifest or weights that changed while the shard was captioned."""


def summary(stored: StoredShard, published: Published) -> str:
    """The result of a shard: its rows, those that a table reused, and the failed ones by kind of error."""
    tables = [stored.table(name) for name in published.tables]
    failed: dict[int, str] = {}
    for table in tables:
        for number, row in enumerate(table.rows):
            if row.error_kind:
                failed.setdefault(number, row.error_kind)
    rows = len(tables[0].rows)
    reused = min(result.reused for result in published.tables.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(failed.values()).most_common())
    return "".join(
        [
            f"{rows - len(failed)} of {rows} rows captioned",
            f", {reused} of them in an earlier run" if reused else "",
            f"; {len(failed)} failed: {kinds}" if failed else "",
        ]
    )


class RunLog(RunObserver):
    """Reports a run's shards to Dagster: progress, materializations, failures. Its methods are thread-safe."""

    def __init__(self, context: dg.AssetExecutionContext, settings: Settings, root: Root) -> None:
        self._context = context
        self._project = Project.of(settings)
        self._graph = settings.caption_recipe.graph
        self._settings = settings
        self._root = root
        self._dashboard = DashboardUpdates(root)
        self._failures = ShardFailures(context)
        self._skips: dict[str, str] = {}
        self._inputs: dict[str, Inputs] = {}
        self._progress = WindowProgress(CommandProgress.of(context.run.tags))
        self._clock = EngineClock()
        self._has_several_shards = len(context.partition_keys) > 1
        self._logs_checks = not context.has_partition_key
        """In a run over a range, even of one shard, Dagster gives no partition to a check's result that is yielded."""
        self._publishing = Lock()
        self._recorded: defaultdict[str, set[str]] = defaultdict(set)
        """Names of the recorded tables, by shard."""
        self._captioned: dict[str, tuple[set[str], int]] = {}
        """The captioned shards and the number of registered ones, by table."""
        self._results: list[dg.MaterializeResult[None]] = []

    def ready(self, shards: Sequence[str], stages: Sequence[Stage]) -> list[str]:
        """The shards that have the tables that these stages need: tables of this run must be recorded already."""
        made = {table_of(key) for key in self._context.selected_asset_keys} - {stage.name for stage in stages}
        needed = made.intersection(name for stage in stages for name in stage.needs)
        return [shard for shard in shards if needed <= self._recorded[shard]]

    def take_results(self) -> list[dg.MaterializeResult[None]]:
        """The results that a step over one shard yields, each once. Over several shards, their events are logged."""
        results, self._results = self._results, []
        return results

    def engine_requested(self) -> None:
        """Start the clock of the engine's time: GPUs are in use from now on."""
        self._clock.start()

    def engine_ready(self) -> None:
        """Log the engine's start-up time."""
        self._context.log.info(f"the engine is ready after {self._clock.ready():.0f} s")

    def started(self, shard: str, windows: int, unfinished: int) -> None:
        """Record the versions of the inputs that the shard is made from."""
        self._progress.expect(windows, unfinished)
        self._inputs[shard] = self._current_inputs(shard)

    def captioned(self, shard: str, done: int, windows: int, *, ok: bool) -> None:
        """Log the progress."""
        if (rate := self._progress.advance()) is not None:
            self._context.log.info(f"{shard}: {done} of {windows} windows done{rate and f'; {rate}'}")

    def published(self, shard: str, published: Published) -> None:
        """Write the gallery; check and record each table. One that fails a check blocks only those that need it."""
        with self._publishing, self._failures.of(shard):
            stored = StoredShard(self._root, shard)
            cost = self._cost(published)
            links = self._links(stored, cost)
            inputs = self._unchanged_inputs(shard)
            errors: list[Finding] = []
            blocked: set[str] = set()
            for table, result in published.tables.items():
                if blocked.intersection(self._project.inputs[table]):
                    blocked.add(table)
                    continue
                found = check_with_history(
                    self._context, self._project, self._graph, stored, table, self._settings.failure_limits
                )
                if failed := [finding for finding in found if finding.is_error]:
                    errors += failed
                    blocked.add(table)
                else:
                    metadata = {**caption_metadata(stored.table(table), result, cost), **links}
                    self._record(shard, table, result, inputs, metadata, found)
                    self._recorded[shard].add(table)
                if failed or self._logs_checks:
                    log_findings(self._context, self._project, shard, table, found)
            raise_errors(errors)
            gallery = f"; gallery: {gallery_address(self._root, shard, self._settings.link_url)}" if links else ""
            self._context.log.info(f"{shard}: {summary(stored, published)}{gallery}")

    def failed(self, shard: str, error: CaptionAssetsError) -> None:
        """Log the reason. The step fails at its end."""
        self._failures.add(shard, error)

    def skipped(self, shard: str, reason: str) -> None:
        """Log the reason. The step fails if it skips all its shards."""
        if self._has_several_shards:
            self._context.log.warning(f"skipped: {reason}")
        self._skips[shard] = reason

    def warned(self, message: str) -> None:
        """Log a warning."""
        self._context.log.warning(printable(message))

    def check(self) -> None:
        """Update the dashboard, and fail the step if a shard has failed, or all were skipped.

        Raises:
            Failure: with the reasons.
        """
        self._observe_failures()
        self._update_dashboard(self._dashboard.finish)
        self._failures.check()
        if self._skips and len(self._skips) == len(self._context.partition_keys):
            raise shards_failed(self._skips, len(self._skips), logged=True)

    def _observe_failures(self) -> None:
        """Report the reasons as observations of the tables that were not made, which the partitions' events show."""
        for shard, reason in self._failures.reasons.items():
            for key in self._context.selected_asset_keys:
                if table_of(key) not in self._recorded[shard]:
                    self._context.log_event(dg.AssetObservation(key, partition=shard, metadata={ERROR: reason}))

    def _counts(self, table: str, shard: str) -> Metadata:
        """The number of captioned shards, after this one, and of all. Takes two queries a run and table."""
        if table not in self._captioned:
            registered = set(self._project.registered(self._context.instance))
            made = self._context.instance.get_materialized_partitions(self._project.key(table))
            self._captioned[table] = made & registered, len(registered)
        captioned, registered_shards = self._captioned[table]
        captioned.add(shard)
        return {"shards_captioned": len(captioned), "shards_registered": registered_shards}

    def _current_inputs(self, shard: str) -> Inputs:
        made = set(self._context.selected_asset_keys)
        return {
            upstream: input_tags(self._context, upstream, shard)
            for key in made
            for upstream in self._context.assets_def.asset_deps[key] - made
        }

    def _unchanged_inputs(self, shard: str) -> Inputs:
        """The inputs that the shard was made from.

        Raises:
            InputChanged: if one has changed since. Dagster would record the captions as made from its present version.
        """
        before, now = self._inputs.pop(shard), self._current_inputs(shard)
        for upstream, tags in before.items():
            if version_of(tags) != version_of(now[upstream]):
                raise InputChanged(
                    f"{upstream.to_user_string()} changed while the shard was captioned: materialize the shard again; "
                    "unchanged captions are reused"
                )
        return before

    def _cost(self, published: Published) -> Cost:
        engine = self._clock.take() if published.engine_seconds else EngineTime()
        return Cost(published, engine, self._settings.gpus, self._settings.gpu_hour_price)

    def _links(self, stored: StoredShard, cost: Cost) -> Metadata:
        """Write the gallery and link it. Captions are recorded even if the gallery cannot be written."""
        stages = [stage.name for stage in self._settings.caption_recipe.stages]
        try:
            gallery = write_gallery(stored, stages)
            write_summary(stored, stages, cost.spending)
        except Exception as error:
            self.warned(f"{stored.shard}: cannot write the gallery: {as_project_error(error)}")
            return {}
        self._update_dashboard(self._dashboard.shard_changed)
        return {"gallery": link(self._root, gallery, self._settings.web_url)}

    def _update_dashboard(self, update: Callable[[], None]) -> None:
        """Update the dashboard. The step does not fail if it cannot be written."""
        try:
            update()
        except Exception as error:
            self.warned(f"cannot write the dashboard: {as_project_error(error)}")

    def _record(
        self,
        shard: str,
        table: str,
        result: PublishedTable,
        inputs: Inputs,
        metadata: Metadata,
        found: Sequence[Finding],
    ) -> None:
        key = self._project.key(table)
        versions = output_tags(self._context, key, result.versions.data)
        for upstream in self._context.assets_def.asset_deps[key]:
            if upstream in inputs or self._has_several_shards:  # Dagster adds these tags to a yielded result
                versions |= inputs.get(upstream) or input_tags(self._context, upstream, shard)
        versions |= input_version_tags(self._project, result.versions)
        metadata = {
            **self._counts(table, shard),
            **metadata,
            "path": dg.MetadataValue.path(self._root.address(result.path)),
        }
        if self._has_several_shards:
            self._context.log_event(dg.AssetMaterialization(key, partition=shard, metadata=metadata, tags=versions))
            return
        self._results.append(
            dg.MaterializeResult(
                asset_key=key,
                metadata=metadata,
                data_version=dg.DataVersion(result.versions.data),
                tags={name: version for name, version in versions.items() if is_input_tag(name)},
                check_results=[] if self._logs_checks else check_results(self._context, key, found),
            )
        )
