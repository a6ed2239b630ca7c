"""The command line: the console script ``caption-assets``.

Each command imports what it runs when it is called: ``--version`` and ``--help`` load neither Dagster nor torch.
"""

import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from caption_assets import __version__
from caption_assets.errors import CaptionAssetsError
from caption_assets.sample.training_config import TrainingConfig

PROJECT = "Project commands (settings and DAGSTER_HOME come from the environment)"
READING = "Reading captions"
RECIPES = "Recipes"
SAMPLE = "Sample data and sample model"

app = Typer(no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)
trash = Typer(no_args_is_help=True, rich_markup_mode="markdown")
recipe = Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(recipe, name="recipe", rich_help_panel=RECIPES, help="Show or check a recipe.")
app.add_typer(trash, name="trash", rich_help_panel=PROJECT, help="List, restore or delete retired shards.")

Yes = Annotated[int | None, Option(metavar="NUMBER", help="Confirm this number instead of being asked for it.")]
Profile = Annotated[str | None, Option(help="AWS profile, as in CAPTION_ROOT_PROFILE. Default: the AWS variables.")]
NameOrFile = Annotated[
    str | None,
    Argument(
        metavar="NAME_OR_FILE",
        help="A built-in recipe, or a YAML file: a path or an s3:// URL. Default: the recipe of the settings.",
    ),
]


def main() -> None:
    """Run the command line. An error of the project ends it with one message and exit status 1."""
    try:
        app(prog_name="caption-assets")
    except CaptionAssetsError as error:
        sys.exit(f"error: {error}")


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(__version__)
        raise SystemExit


@app.callback()
def options(
    version: Annotated[
        bool, Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Caption shards of video clips with a vision-language model, as Dagster assets."""


@app.command(rich_help_panel=READING)
def compare(
    root_a: Annotated[str, Argument(help="A folder or s3://bucket/prefix, as in CAPTION_ROOT.")],
    root_b: Annotated[str, Argument(help="The root to compare it with.")],
    shard: Annotated[str, Argument(help="Shard key.")],
    stage: Annotated[
        str | None,
        Option(help="Stage of the captions to compare: its name, or its position from 1. Default: the last with text."),
    ] = None,
    output: Annotated[Path, Option(help="HTML page to write.")] = Path("compare.html"),
    profile: Profile = None,
) -> None:
    """Compare the captions of a shard in two roots, such as two prompts or two models over one source.

    Prints statistics and writes a page with the rows that differ, word by word.
    """
    from caption_assets.report.comparison import compare_captions, find_stage
    from caption_assets.store.access import Access
    from caption_assets.store.root import Root

    access = Access(profile=profile)
    a, b = Root.open(root_a, access), Root.open(root_b, access)
    compare_captions(a, b, shard, find_stage(a, shard, stage), output)


@app.command(rich_help_panel=READING)
def link(
    root: Annotated[str, Argument(help="A folder or s3://bucket/prefix, as in CAPTION_ROOT.")],
    shard: Annotated[str, Argument(help="Shard key.")],
    hours: Annotated[float, Option(help="Lifetime of the link, in hours.")] = 12,
    profile: Profile = None,
) -> None:
    """Print a link to a shard's gallery that opens without access to the bucket.

    The link is signed with your own key: treat it as a secret until it expires. For a local root it is the file's URL.
    """
    from caption_assets.report.gallery import gallery_path
    from caption_assets.store.access import Access
    from caption_assets.store.root import Root

    print(Root.open(root, Access(profile=profile)).signed_url(gallery_path(shard), hours * 3600))


@recipe.command("show")
def recipe_show(name: NameOrFile = None) -> None:
    """Print the stages of a recipe, what each of them needs, and their prompts as the model of the settings gets them.

    The prompts are rendered, and their tokens counted, if the model's files are on this machine. No engine is started.
    """
    from caption_assets.report.recipe import show_recipe
    from caption_assets.settings import load_settings

    settings = load_settings()
    show_recipe(settings.with_recipe(name), settings.weights)


@recipe.command("check")
def recipe_check(name: NameOrFile = None) -> None:
    """Check a recipe: its file, its stages, its JSON Schemas with vLLM, and that each choice is one token of the model.

    Prints what was checked, and what could not be checked here. No engine is started.
    """
    from caption_assets.report.recipe import check_recipe
    from caption_assets.settings import load_settings

    settings = load_settings()
    check_recipe(settings.with_recipe(name), settings.weights)


@app.command(rich_help_panel=PROJECT)
def retire(
    shards: Annotated[list[str] | None, Argument(metavar="SHARD", help="Shard keys.")] = None,
    removed: Annotated[bool, Option("--removed", help="Retire all shards that were removed from the source.")] = False,
    yes: Yes = None,
) -> None:
    """Move the outputs of shards to the trash and remove their partitions.

    Shows what is moved, and asks for the number of shards. The source is not touched: a shard that is still there is
    registered and captioned again. After an interruption, run the command again.
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
    days: Annotated[float, Argument(help="Minimum age of the entries, in days; 0 deletes all.")],
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
    """Assign the project to the present CAPTION_ROOT, after you have moved its files. Copies and deletes nothing."""
    from caption_assets.automation.move import move_project

    print(move_project())


@app.command(rich_help_panel=SAMPLE)
def sample_shards(folder: Annotated[Path, Argument(help="Folder for the shards, beside answers.json.")]) -> None:
    """Write the two sample shards of the demo, and the correct answers about their clips."""
    from caption_assets.sample.shards import write_shards

    write_shards(folder)


@app.command(rich_help_panel=SAMPLE)
def train_sample(
    out: Annotated[Path, Argument(help="Folder for the model.")],
    vision_steps: Annotated[
        int, Option(help="Training steps of the vision tower alone.")
    ] = TrainingConfig.vision_steps,
    glimpses: Annotated[int, Option(help="Batch size of these steps, in crops of windows.")] = TrainingConfig.glimpses,
    vision_rate: Annotated[float, Option(help="Peak learning rate of these steps.")] = TrainingConfig.vision_rate,
    steps: Annotated[int, Option(help="Training steps of the whole model.")] = TrainingConfig.steps,
    batch: Annotated[int, Option(help="Batch size of these steps, in windows.")] = TrainingConfig.batch,
    rate: Annotated[float, Option(help="Peak learning rate of these steps.")] = TrainingConfig.rate,
    examples: Annotated[int, Option(help="Number of training windows.")] = TrainingConfig.examples,
    held_out: Annotated[int, Option(help="Number of evaluation windows.")] = TrainingConfig.held_out,
    seed: Annotated[int, Option(help="Random seed.")] = TrainingConfig.seed,
    workers: Annotated[int, Option(help="Number of processes that render windows.")] = TrainingConfig.workers,
) -> None:
    """Train the sample model from random weights: about 20 minutes on two CPU cores."""
    from caption_assets.sample.train import train

    train(
        TrainingConfig(vision_steps, glimpses, vision_rate, steps, batch, rate, examples, held_out, seed, workers),
        out,
    )
