"""Commands that read captions."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from caption_assets.cli.app import READING, Profile, app


@app.command(rich_help_panel=READING)
def compare(
    root_a: Annotated[str, Argument(metavar="ROOT_A", help="A folder or s3://bucket/prefix, as in CAPTION_ROOT.")],
    root_b: Annotated[str, Argument(metavar="ROOT_B", help="The root to compare it with.")],
    shard: Annotated[str, Argument(metavar="SHARD", help="Shard key.")],
    stage: Annotated[
        str | None,
        Option(help="Stage of the captions to compare: its name, or its position from 1. Default: the last with text."),
    ] = None,
    output: Annotated[Path, Option(help="HTML page to write.")] = Path("compare.html"),
    profile: Profile = None,
) -> None:
    """Compare the captions of a shard in two roots, such as two prompts or two models over one source.

    Prints statistics and writes a page with the rows that differ, word by word.

    **Example**

    `caption-assets compare captions captions-of-the-new-prompt my-shard --stage stage2_captions`
    """
    from caption_assets.report.comparison import compare_captions, find_stage
    from caption_assets.store.access import Access
    from caption_assets.store.root import Root

    access = Access(profile=profile)
    a, b = Root.open(root_a, access), Root.open(root_b, access)
    compare_captions(a, b, shard, find_stage(a, shard, stage), output)
