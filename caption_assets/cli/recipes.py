"""Commands that show, check and try recipes."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from caption_assets.cli.app import RECIPES, app
from caption_assets.cli.output import keep_output_for_result, report

recipe = Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(recipe, name="recipe", rich_help_panel=RECIPES, help="Show or check a recipe.")

NameOrFile = Annotated[
    str | None,
    Argument(
        metavar="NAME_OR_FILE",
        help="A built-in recipe, or a YAML file: a path or an s3:// URL. Default: the recipe of the settings.",
    ),
]


@recipe.command("show")
def recipe_show(name: NameOrFile = None) -> None:
    """Print the stages of a recipe, what each of them needs, and their prompts as the model of the settings gets them.

    The prompts are rendered, and their tokens counted, if the model's files are on this machine. No engine is started.

    **Example**

    `caption-assets recipe show driving` shows a built-in recipe.
    """
    from caption_assets.report.recipe import show_recipe
    from caption_assets.settings import load_settings

    settings = load_settings()
    show_recipe(settings.with_recipe(name), settings.weights)


@recipe.command("check")
def recipe_check(name: NameOrFile = None) -> None:
    """Check a recipe: its file, its stages, its JSON Schemas with vLLM, and that each choice is one token of the model.

    Prints what was checked, and what could not be checked here. No engine is started.

    **Example**

    `caption-assets recipe check recipe.yaml`
    """
    from caption_assets.report.recipe import check_recipe
    from caption_assets.settings import load_settings

    settings = load_settings()
    check_recipe(settings.with_recipe(name), settings.weights)


@app.command("try-prompt", rich_help_panel=RECIPES)
def try_prompt(
    recipe: Annotated[
        str, Argument(metavar="NAME_OR_FILE", help="A built-in recipe, or a YAML file: a path or an s3:// URL.")
    ],
    shard: Annotated[str, Option(metavar="SHARD", help="Shard with the windows. It needs a manifest.")],
    windows: Annotated[
        int, Option(min=1, help="Number of windows to caption, at equal distances over the shard.")
    ] = 20,
    stage: Annotated[
        str | None, Option(help="Compare this stage alone, and caption only what it needs. Default: all.")
    ] = None,
    output: Annotated[Path, Option(help="HTML page to write.")] = Path("try-prompt.html"),
) -> None:
    """Caption a sample of a shard under another recipe, and show the captions beside the stored ones.

    Prints statistics and writes a page. All other settings are those of the project. Stored captions that the recipe
    would keep are not made again. Nothing is written to the root.

    **Example**

    `caption-assets try-prompt my-recipe.yaml --shard my-shard --windows 20`
    """
    from caption_assets.commands.try_prompt import try_prompt
    from caption_assets.settings import load_settings

    keep_output_for_result()
    try_prompt(load_settings(), recipe, shard, windows=windows, stage=stage, output=output, report=report)
