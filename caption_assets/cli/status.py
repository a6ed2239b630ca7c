"""Commands that show the state and the captions of shards."""

from typing import Annotated

from typer import Argument, Option

from caption_assets.cli.app import READING, app

Json = Annotated[bool, Option("--json", help="Print a JSON document.")]


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

    Examples: `caption-assets show my-shard --failed`, `caption-assets show my-shard --stage stage2_captions | less`
    """
    from caption_assets.report.terminal import show_shard
    from caption_assets.settings import load_settings
    from caption_assets.store.root import Root

    settings = load_settings()
    root = Root.open(settings.storage.root_url, settings.storage.root_access)
    order = [one.name for one in settings.caption_recipe.stages]
    show_shard(root, shard, order, stage=stage, limit=limit, only_failed=failed, as_json=as_json)
