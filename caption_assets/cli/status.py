"""Commands that show the state and the captions of shards."""

from typing import Annotated

from typer import Argument, Exit, Option

from caption_assets.cli.app import CAPTIONING, READING, app

Json = Annotated[bool, Option("--json", help="Print a JSON document.")]


@app.command(rich_help_panel=CAPTIONING)
def status(
    shards: Annotated[
        list[str] | None, Argument(metavar="SHARD", help="Shard keys. Default: a summary of all.")
    ] = None,
    as_json: Json = False,
    exit_code: Annotated[
        bool, Option("--exit-code", help="Exit with status 3 if a shard is failed, stale, missing or running.")
    ] = False,
) -> None:
    """Show the state of the shards: why some failed, what made others stale, and the next command to type.

    A shard is complete if its manifest and the captions of all stages are stored, recorded, and made from its present
    clips with the present settings. Nothing is changed. With names of shards, it shows each of their tables.

    Exit status: 0, 1 after an error, or as `--exit-code` says.

    **Examples**

    `caption-assets status` is about all shards, and `caption-assets status my-shard` about one.

    `caption-assets status --json | jq .stale` prints what is stale, for a script.
    """
    from caption_assets.commands.status import INCOMPLETE, show_status

    is_complete = show_status(shards or [], as_json=as_json)
    if exit_code and not is_complete:
        raise Exit(INCOMPLETE)


@app.command(rich_help_panel=READING)
def show(
    shard: Annotated[str, Argument(metavar="SHARD", help="Shard key.")],
    stage: Annotated[str | None, Option(metavar="NAME", help="Show this stage alone.")] = None,
    limit: Annotated[int | None, Option(min=1, help="Maximum number of windows. Default: all.")] = None,
    failed: Annotated[bool, Option("--failed", help="Show only windows without a caption, and unreadable clips.")] = (
        False
    ),
    as_json: Json = False,
) -> None:
    """Show the captions of a shard: each window with its time range, the answer of each stage, flags and errors.

    Reads the tables in CAPTION_ROOT. It needs no Dagster instance.

    **Examples**

    `caption-assets show my-shard --failed` shows what has no caption, and why.

    `caption-assets show my-shard --stage stage2_captions | less`
    """
    from caption_assets.report.terminal import show_shard
    from caption_assets.settings import load_settings
    from caption_assets.store.root import Root

    settings = load_settings()
    root = Root.open(settings.storage.root_url, settings.storage.root_access)
    order = [one.name for one in settings.caption_recipe.stages]
    show_shard(root, shard, order, stage=stage, limit=limit, only_failed=failed, as_json=as_json)
