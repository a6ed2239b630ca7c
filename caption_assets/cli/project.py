"""Commands that maintain a project: its shards, records and root."""

from typing import Annotated

from typer import Argument, Option, Typer

from caption_assets.cli.app import PROJECT, Yes, app

trash = Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(trash, name="trash", rich_help_panel=PROJECT, help="List, restore or delete retired shards.")


@app.command(rich_help_panel=PROJECT)
def retire(
    shards: Annotated[list[str] | None, Argument(metavar="SHARD", help="Shard keys.")] = None,
    removed: Annotated[bool, Option("--removed", help="Retire all shards that were removed from the source.")] = False,
    yes: Yes = None,
) -> None:
    """Move the outputs of shards to the trash and remove their partitions.

    Shows what is moved, and asks for the number of shards. The source is not touched: a shard that is still there is
    registered and captioned again. After an interruption, run the command again.

    **Examples**

    `caption-assets retire street-01`

    `caption-assets retire --removed --yes 3` asks nothing, and stops if it is not three shards.
    """
    from caption_assets.automation.retire import retire_shards

    retire_shards(shards or [], removed=removed, answer=yes)


@trash.command("list")
def trash_list() -> None:
    """List the retired shards with their size."""
    from caption_assets.automation.trash import list_trash

    list_trash()


@trash.command("restore")
def trash_restore(
    shards: Annotated[list[str], Argument(metavar="SHARD", help="Shard keys.")],
    at: Annotated[str | None, Option(metavar="TIME", help="Time of the entry, as listed. Default: the latest.")] = None,
) -> None:
    """Restore retired shards: their files, partitions and records."""
    from caption_assets.automation.trash import restore_shards

    restore_shards(shards, at)


@trash.command("empty")
def trash_empty(
    days: Annotated[float, Argument(metavar="DAYS", help="Minimum age of the entries, in days; 0 deletes all.")],
    yes: Yes = None,
) -> None:
    """Delete old entries for good. Asks for the number of entries."""
    from caption_assets.automation.trash import empty_trash

    empty_trash(days, yes)


@app.command(rich_help_panel=PROJECT)
def removals(
    confirm: Annotated[
        int | None, Option(metavar="NUMBER", help="Confirm that this number of shards was removed for good.")
    ] = None,
) -> None:
    """List registered shards that are missing from the source, or confirm that they were removed for good."""
    from caption_assets.automation.removals import review_removals

    print(review_removals(confirm))


@app.command(rich_help_panel=PROJECT)
def reconcile(
    fix: Annotated[bool, Option("--fix", help="Correct the event log.")] = False,
    yes: Yes = None,
) -> None:
    """Compare Dagster's event log with the tables in the root, for all shards without an active run.

    With --fix, a table that is recorded but not stored is recorded as removed, so that the schedule requests it again;
    the command asks for the number of these tables. A table that is stored but not recorded is recorded with the
    versions in its file, so that it is not made again. No table is changed.
    """
    from caption_assets.automation.reconcile import reconcile_event_log

    reconcile_event_log(fix=fix, answer=yes)


@app.command(rich_help_panel=PROJECT)
def move() -> None:
    """Assign the project to the present CAPTION_ROOT and CAPTION_SOURCE, after you have moved its files.

    Copies and deletes nothing.
    """
    from caption_assets.automation.move import move_project

    print(move_project())
