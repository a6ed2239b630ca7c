"""Commands that read captions."""

from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

from caption_assets.cli.app import READING, Profile, app


@app.command(rich_help_panel=READING)
def compare(
    root_a: Annotated[
        str | None, Argument(metavar="ROOT_A", help="A folder or s3://bucket/prefix, as in CAPTION_ROOT.")
    ] = None,
    root_b: Annotated[str | None, Argument(metavar="ROOT_B", help="The root to compare it with.")] = None,
    shard: Annotated[str | None, Argument(metavar="SHARD", help="Shard key.")] = None,
    previous: Annotated[
        str | None,
        Option(
            metavar="SHARD",
            help="Instead of two roots: a shard in CAPTION_ROOT, whose captions are compared with those they replaced.",
        ),
    ] = None,
    stage: Annotated[
        str | None,
        Option(
            help="Stage of the captions to compare: its name, or its position from 1. Default: the last with text, "
            "with --previous the last that has previous texts."
        ),
    ] = None,
    output: Annotated[Path, Option(help="HTML page to write.")] = Path("compare.html"),
    profile: Profile = None,
) -> None:
    """Compare the captions of a shard in two roots, such as two prompts or two models over one source.

    With `--previous`, compare the captions in one root with those that they replaced.

    Prints statistics and writes a page with the rows that differ, word by word.

    **Examples**

    `caption-assets compare captions captions-of-the-new-prompt my-shard --stage stage2_captions`

    `caption-assets compare --previous my-shard` compares the captions with those that they replaced.
    """
    if previous is not None:
        if root_a is not None:
            raise BadParameter("--previous compares within CAPTION_ROOT: leave out the roots")
        _compare_previous(previous, stage, output, profile)
    elif root_a is None or root_b is None or shard is None:
        raise BadParameter("give two roots and a shard, or --previous SHARD")
    else:
        _compare_roots(root_a, root_b, shard, stage, output, profile)


def _compare_previous(shard: str, stage: str | None, output: Path, profile: str | None) -> None:
    from dataclasses import replace

    from caption_assets.report.comparison import compare_previous
    from caption_assets.settings import load_settings
    from caption_assets.store.root import Root

    storage = load_settings().storage
    access = replace(storage.root_access, profile=profile) if profile else storage.root_access
    compare_previous(Root.open(storage.root_url, access), shard, stage, output)


def _compare_roots(root_a: str, root_b: str, shard: str, stage: str | None, output: Path, profile: str | None) -> None:
    from caption_assets.report.comparison import compare_captions, find_stage
    from caption_assets.store.access import Access
    from caption_assets.store.root import Root

    access = Access(profile=profile)
    a, b = Root.open(root_a, access), Root.open(root_b, access)
    compare_captions(a, b, shard, find_stage(a, shard, stage), output)
