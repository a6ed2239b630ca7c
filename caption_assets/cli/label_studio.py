"""Commands that exchange captions and decisions with Label Studio."""

from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option, Typer

from caption_assets.cli.app import READING, app

label_studio = Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(
    label_studio,
    name="label-studio",
    rich_help_panel=READING,
    help="Exchange captions and decisions with Label Studio.",
)


@label_studio.command("export")
def export(
    shards: Annotated[list[str] | None, Argument(metavar="SHARD", help="Shard keys.")] = None,
    every: Annotated[bool, Option("--all", help="All shards that have a manifest.")] = False,
    output: Annotated[Path, Option(help="Folder to write.")] = Path("label-studio"),
    stage: Annotated[
        list[str] | None, Option(metavar="STAGE", help="Export this stage alone; repeatable. Default: all.")
    ] = None,
    document_root: Annotated[
        str, Option(help="LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT of the server, for clips in local folders.")
    ] = "/",
    signed_hours: Annotated[
        float | None,
        Option(
            help="Sign URLs of clips in S3 for this number of hours. Default: s3:// URIs, which the server resolves."
        ),
    ] = None,
) -> None:
    """Write the labeling configuration, and a file of tasks for each shard: its videos, with captions as predictions.

    Paste `config.xml` into the project's labeling interface, and import the `.json` files. The URL of a window is that
    of its clip with the window's time range. Clips in tars have no URL.

    **Example**

    `caption-assets label-studio export street-01 --stage stage2_captions`
    """
    if bool(shards) == every:
        raise BadParameter("name shards or give --all", param_hint="SHARD")
    from caption_assets.interchange.label_studio import VideoLinks, write_tasks
    from caption_assets.settings import load_settings
    from caption_assets.store.root import Root

    settings = load_settings()
    storage, stages = settings.storage, settings.caption_recipe.stages
    if unknown := [name for name in stage or () if name not in [one.name for one in stages]]:
        known = ", ".join(one.name for one in stages)
        raise BadParameter(f"the recipe has no stage {unknown[0]!r}; it has {known}", param_hint="--stage")
    root = Root.open(storage.root_url, storage.root_access)
    seconds = None if signed_hours is None else signed_hours * 3600
    links = VideoLinks(Root.open(storage.source_url, storage.source_access), document_root, seconds)
    chosen = [one for one in stages if not stage or one.name in stage]
    for file, count in write_tasks(root, shards, chosen, links, output):
        print(f"{file}: {count} tasks")


@label_studio.command("import")
def import_(
    file: Annotated[Path, Argument(metavar="FILE", help="The project's export in the format JSON.")],
) -> None:
    """Store the decisions of a project as corrections: edited texts as rewrites, and accepted and rejected ones.

    Importing a file again adds nothing.

    **Example**

    `caption-assets label-studio import project-1-at-2026-11-29.json`
    """
    from caption_assets.interchange.label_studio_decisions import read_decisions, save_decisions
    from caption_assets.settings import load_settings
    from caption_assets.store.root import Root

    storage = load_settings().storage
    found = read_decisions(file)
    added = save_decisions(Root.open(storage.root_url, storage.root_access), found)
    for shard, count in added.items():
        print(f"{shard}: {count} new corrections of {len(found[shard])}")
    if not added:
        print("no decisions: nothing was added")
