"""Commands that caption and export the shards of a project."""

import shlex
import sys
from typing import Annotated

from typer import Argument, BadParameter, Context, Exit, Option

from caption_assets.cli.app import CAPTIONING, app


@app.command(rich_help_panel=CAPTIONING)
def run(
    context: Context,
    shards: Annotated[list[str] | None, Argument(metavar="SHARD", help="Shard keys.")] = None,
    all_: Annotated[bool, Option("--all", help="All shards that are not up to date.")] = False,
    missing: Annotated[
        bool, Option("--missing", help="Shards without current captions, or whose clips have changed. The default.")
    ] = False,
    stale: Annotated[
        bool, Option("--stale", help="Shards captioned with other settings than the present ones.")
    ] = False,
    failed: Annotated[bool, Option("--failed", help="Shards whose last run failed.")] = False,
    stage: Annotated[
        list[str] | None,
        Option(metavar="STAGE", help="Caption this stage, and missing ones that it needs; repeatable."),
    ] = None,
    limit: Annotated[int | None, Option(min=1, metavar="N", help="Caption at most this number of shards.")] = None,
) -> None:
    """Caption shards: register them, fetch the model, list their windows, and caption these.

    All is done in this process, as runs on the Dagster instance of DAGSTER_HOME: the UI shows them as any other. One
    engine captions up to CAPTION_SHARDS_PER_RUN shards. What is up to date is skipped; a shard that is named retries
    its failed windows. After Ctrl-C the same command resumes.

    **Examples**

    `caption-assets run` captions new, changed and failed shards.

    `caption-assets run street-01 street-02` captions these two.

    `caption-assets run --stale --stage stage2_captions --limit 3` tries a new prompt on three shards.

    Exit status: 0, 1 if a shard failed, 130 after Ctrl-C.
    """
    from caption_assets.commands.run import run_shards
    from caption_assets.commands.selection import Need, Selection

    wanted = {Need.MISSING: missing or all_, Need.STALE: stale or all_, Need.FAILED: failed or all_}
    states = [state for state, is_wanted in wanted.items() if is_wanted]
    if shards and states:
        raise BadParameter("name shards or select them by an option, not both", param_hint="SHARD")
    _use_debug(context)
    selection = Selection(shards or (), states or (Need.MISSING,), stage or (), limit)
    raise Exit(run_shards(selection, shlex.join(["caption-assets", *sys.argv[1:]])))


@app.command(rich_help_panel=CAPTIONING)
def export(
    context: Context,
    shards: Annotated[list[str] | None, Argument(metavar="SHARD", help="Shard keys.")] = None,
    all_: Annotated[bool, Option("--all", help="All shards with current captions.")] = False,
    format_: Annotated[
        str | None,
        Option(
            "--format",
            metavar="FORMAT",
            help="webdataset, energon, jsonl, csv, pairs, ltx, videox-fun, fastvideo, open-sora, musubi, cosmos, "
            "chat or conversations. Default: CAPTION_EXPORT.",
        ),
    ] = None,
) -> None:
    """Export captioned shards as a training dataset, in the format of a trainer.

    Each shard is a run of the asset `captioned_dataset` on the Dagster instance. Files that are up to date are kept.
    At the end the lines of all exported shards are merged into one file, if the trainer reads one.

    **Examples**

    `caption-assets export --all --format webdataset`

    `caption-assets export --all --format ltx` writes a video file for each window, and `ltx.jsonl`.

    `caption-assets export street-01`

    Exit status: 0, 1 if a shard failed, 130 after Ctrl-C.
    """
    import os

    if bool(shards) == all_:
        raise BadParameter("name shards or give --all", param_hint="SHARD")
    _use_debug(context)
    if format_:
        os.environ["CAPTION_EXPORT"] = format_

    from caption_assets.commands.export import export_shards

    raise Exit(export_shards(shards or ()))


def _use_debug(context: Context) -> None:
    """Let runs log everything after --debug."""
    import os

    if context.obj:
        os.environ["CAPTION_LOG_LEVEL"] = "debug"
