"""Commands that show and check recipes."""

from typing import Annotated

from typer import Argument, Typer

from caption_assets.cli.app import RECIPES, app

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
