"""Commands that make a project folder and serve its UI."""

import os
import shlex
from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option

from caption_assets.cli.app import PROJECT, app


@app.command(rich_help_panel=PROJECT)
def init(
    folder: Annotated[Path, Argument(metavar="DIR", help="A new or empty folder.")],
    source: Annotated[
        str | None, Option(help="Folder or s3://bucket/prefix of the shards. Default: DIR/shards.")
    ] = None,
    root: Annotated[
        str | None, Option(help="Folder or s3://bucket/prefix of all outputs. Default: DIR/captions.")
    ] = None,
    model: Annotated[
        str | None, Option(help="Model, as in CAPTION_MODEL, such as qwen2.5. Default: the sample model.")
    ] = None,
) -> None:
    """Make a project folder: settings, a Dagster instance, a recipe, and what `dg` and CI need.

    All commands read the settings in its `.env` when they are started in it.

    **Example**

    `caption-assets init my-captions --source s3://bucket/shards --model qwen2.5`
    """
    from caption_assets.scaffold.folder import ProjectFolder

    project = ProjectFolder.of(folder, root, source, model)
    project.make()
    print(f"Made {project.path}. Settings: .env; questions to the model: recipe.yaml. Next:\n")
    if project.path != Path.cwd():
        print(f"  cd {shlex.quote(min(os.path.relpath(project.path), str(project.path), key=len))}")
    print(f"  caption-assets run --all    # after you have put clips into {project.source}")
    print("  caption-assets dev          # Dagster's UI on http://127.0.0.1:3000")


@app.command(rich_help_panel=PROJECT)
def dev(
    port: Annotated[int, Option(min=1, max=65535, help="Port of the UI.")] = 3000,
) -> None:
    """Run Dagster's UI and daemon over this project, until Ctrl-C.

    The same as `dg dev`, with a server of the galleries that the UI links to. Ctrl-C stops runs too; they resume.
    """
    from caption_assets.commands.dev import serve_project

    raise Exit(serve_project(port))
