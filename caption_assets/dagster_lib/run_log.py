"""The log of a caption run: reports each shard to Dagster as it is captioned, published or failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from threading import Lock

import dagster as dg

from caption_assets.captioning.open_shard import Published, PublishedTable
from caption_assets.captioning.shard_queue import RunObserver
from caption_assets.checks.findings import Finding
from caption_assets.checks.stored import read_stored
from caption_assets.dagster_lib.caption_metadata import Cost, Metadata, caption_metadata
from caption_assets.dagster_lib.check_events import check_results, findings, log_findings
from caption_assets.dagster_lib.engine_time import EngineTime, Meter
from caption_assets.dagster_lib.failures import ShardFailures, shards_failed
from caption_assets.dagster_lib.links import link
from caption_assets.dagster_lib.pace import Pace
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.provenance import input_tags, input_version_tags, is_input_tag, output_tags, version_of
from caption_assets.errors import CaptionAssetsError, as_project_error, printable
from caption_assets.report.gallery import write_gallery
from caption_assets.settings import Settings
from caption_assets.store.root import Root

Inputs = Mapping[dg.AssetKey, dict[str, str]]
"""Version tags by upstream asset."""


class CheckFailed(CaptionAssetsError):
    """A shard with a table that a check of severity error does not let pass."""


class InputChanged(CaptionAssetsError):
    """A shard whose manifest or weights were made anew while it was captioned."""


class RunLog(RunObserver):
    """Tells Dagster of a run's shards: progress, materializations, failures. Any thread may call its methods."""

    def __init__(self, context: dg.AssetExecutionContext, settings: Settings, root: Root) -> None:
        self._context = context
        self._project = Project(settings.project)
        self._settings = settings
        self._root = root
        self._failures = ShardFailures(context)
        self._skips: dict[str, str] = {}
        self._inputs: dict[str, Inputs] = {}
        self._pace = Pace()
        self._meter = Meter()
        self._is_over_several = len(context.partition_keys) > 1
        self._telling = Lock()
        self.results: list[dg.MaterializeResult[None]] = []
        """What the step yields at its end: for its one shard; of several, each is recorded when it is published."""

    def engine_wanted(self) -> None:
        """The engine is being started: from now on GPUs are used."""
        self._meter.begin()

    def engine_ready(self) -> None:
        """It takes requests."""
        self._context.log.info(f"the engine is ready after {self._meter.ready():.0f} s")

    def begun(self, shard: str, windows: int, left: int) -> None:
        """Remember which versions of its inputs the shard is made from."""
        self._pace.expect(left)
        self._inputs[shard] = self._present_inputs(shard)

    def captioned(self, shard: str, done: int, windows: int, *, ok: bool) -> None:
        """Log how far the run is, every few seconds and at the end of a shard."""
        if word := self._pace.tell(last=done == windows):
            self._context.log.info(f"{shard}: {done} of {windows} windows done; {word}")

    def published(self, shard: str, published: Published) -> None:
        """Make the gallery; check and record each table, stage 1 first, up to one that a check does not let pass."""
        with self._telling, self._failures.of(shard):
            cost, links = self._cost(published), self._links(shard)
            inputs = self._unchanged_inputs(shard)
            stored = read_stored(self._root, shard, max(published.tables))
            for table, result in published.tables.items():
                found = findings(self._context, self._project, shard, stored[table], self._settings.max_failed_fraction)
                passes = not any(finding.is_error for finding in found)
                if passes:
                    metadata = {**caption_metadata(stored[table], result, cost), **links}
                    self._record(shard, table, result, inputs, metadata, found)
                if not passes or self._is_over_several:
                    log_findings(self._context, self._project, shard, table, found)
                _let_pass(found)

    def failed(self, shard: str, error: CaptionAssetsError) -> None:
        """Keep the reason; the run fails at its end."""
        self._failures.add(shard, error)

    def skipped(self, shard: str, reason: str) -> None:
        """Say so; the run fails for it only if it did nothing else."""
        self._context.log.warning(f"skipped: {reason}")
        self._skips[shard] = reason

    def warned(self, message: str) -> None:
        """Pass it on."""
        self._context.log.warning(printable(message))

    def check(self) -> None:
        """End the step.

        Raises:
            Failure: if a shard failed, or none was done because others are at work on them.
        """
        self._pace.close()
        self._failures.check()
        if self._skips and len(self._skips) == len(self._context.partition_keys):
            raise shards_failed("nothing was done", self._skips)

    def _present_inputs(self, shard: str) -> Inputs:
        made = set(self._context.selected_asset_keys)
        return {
            upstream: input_tags(self._context, upstream, shard)
            for key in made
            for upstream in self._context.assets_def.asset_deps[key] - made
        }

    def _unchanged_inputs(self, shard: str) -> Inputs:
        """The inputs that the shard was made from, if these are still the present ones.

        Raises:
            InputChanged: if not. Recorded, the captions would pass for those of what is there now.
        """
        before, now = self._inputs.pop(shard), self._present_inputs(shard)
        for upstream, tags in before.items():
            if version_of(tags) != version_of(now[upstream]):
                raise InputChanged(
                    f"{upstream.to_user_string()} was made anew while the shard was captioned: materialize it again; "
                    "what is unchanged is taken over"
                )
        return before

    def _cost(self, published: Published) -> Cost:
        used = bool(published.spent.stage1 or published.spent.stage2)
        engine = self._meter.read() if used else EngineTime()
        return Cost(published.spent, engine, self._settings.gpus, self._settings.gpu_hour_price)

    def _links(self, shard: str) -> Metadata:
        """To the gallery, which is made now. That it could not be made is no reason to lose captions over."""
        try:
            gallery = write_gallery(self._root, shard)
        except Exception as error:
            self.warned(f"{shard}: there is no gallery: {as_project_error(error)}")
            return {}
        return {"gallery": link(self._root, gallery, self._settings.link_url)}

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
            if upstream in inputs or self._is_over_several:  # Dagster knows the event of a result that was just yielded
                versions |= inputs.get(upstream) or input_tags(self._context, upstream, shard)
        versions |= input_version_tags(self._project, result.versions)
        facts = {**metadata, "path": dg.MetadataValue.path(self._root.address(result.path))}
        if self._is_over_several:
            self._context.log_event(dg.AssetMaterialization(key, partition=shard, metadata=facts, tags=versions))
            return
        self.results.append(
            dg.MaterializeResult(
                asset_key=key,
                metadata=facts,
                data_version=dg.DataVersion(result.versions.data),
                tags={name: version for name, version in versions.items() if is_input_tag(name)},
                check_results=check_results(self._context, key, found),
            )
        )


def _let_pass(found: Iterable[Finding]) -> None:
    """Raise for the first finding that the shard fails of."""
    for finding in found:
        if finding.is_error:
            raise CheckFailed(finding.message)
