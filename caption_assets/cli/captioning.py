"""The command that captions files without a project."""

import os
from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Context, Option

from caption_assets.cli.app import CAPTIONING, app


@app.command(rich_help_panel=CAPTIONING)
def caption(
    context: Context,
    files: Annotated[
        list[str],
        Argument(
            metavar="FILE",
            help="Video files, folders of them, tars and lists as in a source of shards, or s3:// and https:// URLs.",
            show_default=False,
        ),
    ],
    recipe: Annotated[
        str | None, Option(help="Recipe: a built-in one or a YAML file. Default: CAPTION_RECIPE, or the model's.")
    ] = None,
    model: Annotated[
        str | None, Option(help="Model: a key, Hub id or folder. Default: CAPTION_MODEL, or the toy model `sample`.")
    ] = None,
    json: Annotated[bool, Option("--json", help="Print a JSON object for each row.")] = False,
    srt: Annotated[bool, Option("--srt", help="Write SubRip subtitles of one stage.")] = False,
    vtt: Annotated[bool, Option("--vtt", help="Write WebVTT subtitles of one stage.")] = False,
    stage: Annotated[
        str | None,
        Option(
            help="Print this stage alone, and caption only what it needs. Default: all; for subtitles, the last "
            "with text."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        Option(help="Folder of the subtitles, one file a clip. Default: standard output, for one clip alone."),
    ] = None,
) -> None:
    """Caption video files with nothing set up: no project, no Dagster.

    Captions go to standard output as windows finish, in the order of the files; progress goes to standard error.
    Nothing is stored except the model's weights. Other settings come from CAPTION_* variables, as in a run.

    **Examples**

    `caption-assets caption clip.mp4` prints the captions of a file.

    `caption-assets caption clips --model qwen3 --json > captions.jsonl` writes those of a folder as JSON lines.

    `caption-assets caption *.mp4 --srt --output subtitles` writes a subtitle file for each clip.

    Exit status: 0, 1 if a window or file has no caption, 2 if an argument or a setting is wrong, 130 after Ctrl-C.
    """
    forms = [name for name, is_wanted in (("json", json), ("srt", srt), ("vtt", vtt)) if is_wanted]
    if len(forms) > 1:
        raise BadParameter(f"--{forms[0]} and --{forms[1]} exclude each other: give one of them")
    if output is not None and not (srt or vtt):
        raise BadParameter("--output is the folder of subtitles: add --srt or --vtt, or redirect the standard output")

    from caption_assets.library.captioner import Captioner
    from caption_assets.library.command import CaptionCommand
    from caption_assets.library.formats import Format

    if context.obj:
        os.environ["CAPTION_LOG_LEVEL"] = "debug"
    command = CaptionCommand(Format(forms[0] if forms else "text"), stage, output)
    raise SystemExit(command.run(files, lambda: Captioner(recipe, model)))
