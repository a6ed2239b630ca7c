"""The application of the command line: its options, and the panels of its commands in the help."""

import os
from pathlib import Path
from typing import Annotated

from typer import Context, Option, Typer

from caption_assets import __version__

CAPTIONING = "Captioning"
READING = "Reading captions"
PROJECT = "Project commands, with the settings of .env and the environment"
RECIPES = "Recipes"
SAMPLE = "Sample data and sample model"
"""Panels of the help, in this order."""

app = Typer(no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)

Yes = Annotated[int | None, Option(metavar="NUMBER", help="Confirm this number instead of being asked for it.")]
Profile = Annotated[str | None, Option(help="AWS profile, as in CAPTION_ROOT_PROFILE. Default: the AWS variables.")]


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(__version__)
        raise SystemExit


@app.callback()
def options(
    context: Context,
    version: Annotated[
        bool, Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, Option("--debug", help="Log everything, and print the traceback of an error.")] = False,
) -> None:
    """Caption shards of video clips with a vision-language model, as Dagster assets."""
    from caption_assets.environment import load_env_file

    load_env_file(Path.cwd())
    context.obj = debug
    if os.environ.get("NO_COLOR"):  # https://no-color.org
        context.color = False
