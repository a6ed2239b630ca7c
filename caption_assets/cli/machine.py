"""Commands about this machine: its problems, its captioning rate, and the work that is left for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from typer import Argument, Exit, Option, echo, secho

from caption_assets.cli.app import PROJECT, app
from caption_assets.cli.output import keep_output_for_result, report

AsJson = Annotated[bool, Option("--json", help="Print one line of JSON instead.")]


@app.command(rich_help_panel=PROJECT)
def doctor(
    engine: Annotated[bool, Option("--engine", help="Start the engine too, and caption sample clips.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine, the installation, and the settings. Run it first when something does not work.

    Prints a line for each finding: `ok`, `warning` or `failed`, with the remedy. Exits with status 1 if a check failed.
    """
    from caption_assets.commands.doctor import diagnose, has_failed, summary, to_json

    keep_output_for_result()
    found = []
    for diagnosis in diagnose(with_engine=engine):
        found.append(diagnosis)
        if not as_json:
            color = {"failed": "red", "warning": "yellow", "ok": "green"}[diagnosis.status]
            secho(f"{diagnosis.status:9}", fg=color, nl=False)
            echo(f"{diagnosis.check:17}{diagnosis.message}")
    echo(to_json(found) if as_json else summary(found))
    if has_failed(found):
        raise Exit(1)


@app.command(rich_help_panel=PROJECT)
def bench(
    files: Annotated[
        list[str] | None, Argument(metavar="FILE", help="Video files, folders of them, or URLs. Default: sample clips.")
    ] = None,
    model: Annotated[str | None, Option(help="Model, as in CAPTION_MODEL. Default: that of the settings.")] = None,
    recipe: Annotated[str | None, Option(help="Recipe, as in CAPTION_RECIPE. Default: that of the settings.")] = None,
    windows: Annotated[int, Option(min=1, help="Number of windows to caption; those of the files are repeated.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Measure how many windows a second this machine captions, and whether decoding or the engine limits it.

    Nothing is written to the root, except the weights of a model that it does not hold yet.

    **Example**

    `caption-assets bench my-clips --windows 200` measures with the clips of a folder.
    """
    from caption_assets.commands.bench import bench, table
    from caption_assets.settings import load_settings

    keep_output_for_result()
    given = {name: value for name, value in (("model", model), ("recipe", recipe)) if value is not None}
    result = bench(load_settings(**given), files or [], windows, report)
    _print_table(table(result), result.to_json(), as_json=as_json)


@app.command(rich_help_panel=PROJECT)
def estimate(
    shards: Annotated[
        list[str] | None, Argument(metavar="SHARD", help="Shard keys. Default: all shards of the source.")
    ] = None,
    all_: Annotated[bool, Option("--all", help="Count shards too that are up to date, as for another model.")] = False,
    rate: Annotated[
        float | None,
        Option(
            min=0.001,
            metavar="WINDOWS_PER_SECOND",
            help="Rate for all stages, as `caption-assets bench` prints it. Default: that of earlier runs.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate what is left to caption: windows, tokens, engine time, GPU hours, cost and storage.

    Windows are counted in the manifests; of shards without one, some clips are probed. Nothing is written.

    **Examples**

    `caption-assets estimate` is about what `caption-assets run --all` would do.

    `caption-assets estimate --all --rate 12.5` is about every shard, at the rate of a bench on another machine.
    """
    from caption_assets.commands.estimate import estimate, table
    from caption_assets.settings import load_settings

    found = estimate(load_settings(), shards or [], again=all_, rate=rate)
    _print_table(table(found), found.to_json(), as_json=as_json)


def _print_table(lines: Iterable[tuple[str, str]], line_of_json: str, *, as_json: bool) -> None:
    """Print names and values, or JSON."""
    if as_json:
        print(line_of_json)
        return
    for name, value in lines:
        print(f"{name:18}{value}")
