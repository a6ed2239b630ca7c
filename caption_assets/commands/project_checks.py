"""Checks of a project: its settings, source, root, Dagster instance, code location, models and recipe."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import dagster as dg

from caption_assets.automation.commands import open_instance
from caption_assets.commands.check import Check, Finding, failed, ok, warning
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import ProjectClash, check_claim
from caption_assets.environment import PREFIX, unknown_settings
from caption_assets.models.cache import find_local
from caption_assets.models.checkpoint import Checkpoint
from caption_assets.models.checkpoint_files import CONFIG
from caption_assets.models.download import check_space
from caption_assets.models.hub import Hub
from caption_assets.models.mirror import read_weights_manifest
from caption_assets.models.model_config import parse_config
from caption_assets.models.source import find_source, read_file
from caption_assets.models.vllm_architectures import check_supported
from caption_assets.models.weights import WeightsError, format_size
from caption_assets.report.recipe import recipe_checks
from caption_assets.resources import build_storage
from caption_assets.settings import Settings
from caption_assets.sources.shard import (
    Listing,
    Shard,
    SkipReason,
    files_below,
    list_shards,
    refuse_loose_videos,
)
from caption_assets.store.access import Access
from caption_assets.store.disk import disk_space
from caption_assets.store.root import Root
from caption_assets.store.span import Span

ATTEMPTS = 2
"""Maximum number of attempts of a request to a store: a wrong endpoint is reported in seconds, not in a minute."""
SHOWN = 3
"""Maximum number of names in a finding."""
HEADER_BYTES = 64
"""Number of bytes that are read of a clip, to check the permission."""
MIN_ROOT = 1 << 30
"""Minimum free space for tables, in bytes. A window's row in one table takes up to a few kilobytes."""


def of_settings(settings: Settings) -> Mapping[str, Check]:
    """The checks of a project, by name."""
    checks: dict[str, Check] = {
        "settings": partial(_settings, settings),
        "source": partial(_source, settings),
        "root": partial(_root, settings),
        "instance": partial(_instance, settings),
        "definitions": _definitions,
        "recipe": partial(_recipe, settings),
    }
    for checkpoint in settings.checkpoints:
        is_main = checkpoint == settings.variant
        checks["model" if is_main else checkpoint.hub_id] = partial(_checkpoint, settings, checkpoint)
    return checks


def _settings(settings: Settings) -> Iterator[Finding]:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = [found.name for found in unknown_settings(os.environ, known)]
    if unknown:
        names = f"{', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'}"
        yield warning(f"{names} ignored, because there is no such setting: see docs/reference/settings.md")
    given = len(settings.model_fields_set)
    yield ok(f"{given} set, the others have their defaults; model {settings.model}")


def _quick(access: Access) -> Access:
    return replace(access, attempts=ATTEMPTS)


def _source(settings: Settings) -> Iterator[Finding]:
    source = Root.open(settings.source_url, _quick(settings.storage.source_access))
    listing = list_shards(source)
    refuse_loose_videos(source, listing)
    yield from map(warning, _listing_problems(listing))
    if not listing.shards:
        yield warning(f"{source.url} has no shards: add folders of videos, .tar files, or lists (.jsonl, .parquet)")
        return
    _read_first_bytes(source, listing.shards[0])
    layouts = Counter(shard.layout.value for shard in listing.shards)
    counts = ", ".join(f"{count} {layout}{'s' if count > 1 else ''}" for layout, count in layouts.most_common())
    yield ok(f"{source.url}: {len(listing.shards)} shards ({counts}); the first is readable")


def _listing_problems(listing: Listing) -> Iterator[str]:
    for path, reason in list(listing.refused.items())[:SHOWN]:
        yield f"the shard {path!r} is refused: {reason}"
    if len(listing.refused) > SHOWN:
        yield f"{len(listing.refused) - SHOWN} more shards are refused: materialize shard_index for all reasons"
    for reason, count, names in listing.describe_skipped(SHOWN):
        if reason not in (SkipReason.HIDDEN, SkipReason.OTHER):
            yield f"{count} skipped, {reason}: {names}"


def _read_first_bytes(source: Root, shard: Shard) -> None:
    """Read the first bytes of a shard's file, or of the first file in its folder: a listing needs less permission."""
    path = shard.path
    if shard.file is None:
        files = files_below(source, shard)
        if not files:
            return
        path = f"{path}/{files[0][0]}"
    Span(source.fs.unstrip_protocol(source.full(path)), 0, HEADER_BYTES, access=source.access).read()


def _root(settings: Settings) -> Iterator[Finding]:
    root = Root.open(settings.root, _quick(settings.storage.root_access))
    is_new = root.is_local and not Path(root.path).exists()
    root.check_writable("CAPTION_ROOT")
    supports_create = root.supports_create()
    if is_new:
        Path(root.path).rmdir()  # the probe created it
    if not supports_create:
        yield warning(
            f"the store of {root.url} ignores If-None-Match, so that two runs may caption the same shard: start one "
            "run at a time"
        )
    if root.is_local and (free := disk_space(Path(root.path))[0]) < MIN_ROOT:
        yield warning(f"{root.url} has {format_size(free)} free: free space there, or move CAPTION_ROOT")
    yield ok(f"{root.url} is writable{' and will be created' if is_new else ''}")


def _instance(settings: Settings) -> Iterator[Finding]:
    project = Project.of(settings)
    with open_instance() as instance:
        check_claim(instance, project, build_storage(settings))
        registered = len(project.registered(instance))
        yield ok(f"DAGSTER_HOME={os.environ['DAGSTER_HOME']} loads, with {registered} registered shards")
        statuses = instance.get_daemon_statuses().values()
        if not all(status.healthy for status in statuses if status.required):
            yield warning(
                "Dagster's daemon is not running: sensors, the schedule, and runs that the UI launches wait for it; "
                "commands do not need it"
            )


def _definitions() -> Iterator[Finding]:
    try:
        from caption_assets.definitions import load_definitions  # loads them too

        definitions = load_definitions()
    except ProjectClash:
        yield failed("the code location does not load: see the check of the instance")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about Dagster's implicit job of all assets, which nobody runs
        dg.Definitions.validate_loadable(definitions)
    assets = len(definitions.resolve_asset_graph().get_all_asset_keys())
    yield ok(f"the code location loads, with {assets} assets")


def _recipe(settings: Settings) -> Iterator[Finding]:
    recipe = settings.caption_recipe
    skipped = [what for is_checked, what in recipe_checks(recipe, settings.weights) if not is_checked]
    names = ", ".join(stage.name for stage in recipe.stages)
    context = f"; context of {recipe.context} tokens" if recipe.context else ""
    yield ok(f"{recipe.graph.name}: {names}{context}{f'; not checked: {skipped[0]}' if skipped else ''}")


def _checkpoint(settings: Settings, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Where a checkpoint's files are, without downloading them, and whether there is space for them."""
    name = f"{checkpoint.hub_id}@{checkpoint.revision[:12]}"
    cache = settings.weights.folder
    if checkpoint.bundled:
        yield ok(f"{name} is part of the package")
        return
    root = Root.open(settings.root, _quick(settings.storage.root_access))
    if find_local(checkpoint, cache) and checkpoint.path is None:
        yield ok(f"{name} is in {cache}")
        return
    try:
        size = read_weights_manifest(root, checkpoint).size
        place = f"{root.url}"
    except WeightsError:
        size, place = _find_at_source(settings, checkpoint)
        if root.is_local:
            check_space(Path(root.path), size, "CAPTION_ROOT")
    check_space(cache, size, "CAPTION_CACHE")
    yield ok(f"{name}, {format_size(size)}, is in {place}; a first run copies it to {cache}")


def _find_at_source(settings: Settings, checkpoint: Checkpoint) -> tuple[int, str]:
    """Size and address of a checkpoint at its source. Only its configuration is read.

    Raises:
        WeightsError: if the source cannot be read, or vLLM does not support the model.
    """
    source = find_source(checkpoint, _quick(settings.storage.root_access))
    if not isinstance(source, Hub):
        sizes = source.sizes()  # its listing would hash all files
        checkpoint.kind.check(list(sizes), source.address)
        return sum(sizes[path] for path in checkpoint.kind.select(sizes)), source.address
    files = source.files()
    for file in files:
        if file.path == CONFIG:
            config = parse_config(read_file(source, file), f"{source.address}/{CONFIG}")
            check_supported({**config, **settings.config_overrides}, source.address, video=checkpoint.video)
    return sum(file.size for file in files), source.address
