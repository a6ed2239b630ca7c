"""The command that opens a review."""

import getpass
import sys
from typing import Annotated

from typer import Argument, BadParameter, Option

from caption_assets.cli.app import READING, app

ORDERS = ("manifest", "worst", "random", "score", "flags", "shortest", "longest")


@app.command(rich_help_panel=READING)
def review(
    shards: Annotated[list[str] | None, Argument(metavar="SHARD", help="Shard keys. Default: all shards.")] = None,
    stage: Annotated[
        str | None, Option(help="Stage to review; 'all' for all of them. Default: the last with text.")
    ] = None,
    order: Annotated[str, Option(metavar="ORDER", help=f"Order of the captions: {', '.join(ORDERS)}.")] = "manifest",
    sample: Annotated[int | None, Option(min=1, help="Review only the first captions in this order.")] = None,
    seed: Annotated[int, Option(help="Seed of the order 'random': the same seed gives the same sample.")] = 0,
    reviewer: Annotated[
        str | None, Option("--as", metavar="NAME", help="Your name on decisions. Default: the user's name.")
    ] = None,
    host: Annotated[str, Option(help="Address to listen on. The default is for this machine alone.")] = "127.0.0.1",
    port: Annotated[int, Option(min=1, max=65535, help="Port to listen on.")] = 3002,
) -> None:
    """Review captions in a browser: accept, reject and rewrite them, beside the video of their window.

    Prints the page's address, and opens it if the output is a terminal. Each decision is stored at once, as an object
    of its own in `corrections/` of CAPTION_ROOT; nothing else is written. Ctrl-C ends the review.

    **Examples**

    `caption-assets review my-shard` reviews the captions of a shard.

    `caption-assets review --order random --sample 100` reviews 100 random captions of all shards.
    """
    if order not in ORDERS:
        raise BadParameter(f"{order!r} is no order: give one of {', '.join(ORDERS)}", param_hint="--order")
    from caption_assets.report.review.serve import FirstQuery, serve_review
    from caption_assets.settings import load_settings
    from caption_assets.store.root import Root

    settings = load_settings()
    storage = settings.storage
    serve_review(
        Root.open(storage.root_url, storage.root_access),
        Root.open(storage.source_url, storage.source_access),
        [one.name for one in settings.caption_recipe.stages],
        shards,
        FirstQuery(stage, order, sample, seed),
        reviewer=_reviewer(reviewer),
        host=host,
        port=port,
        open_browser=sys.stdout.isatty(),
    )


def _reviewer(name: str | None) -> str:
    """The name on decisions."""
    if name is None:
        try:
            name = getpass.getuser()
        except (KeyError, OSError) as error:  # a container's user without a name
            raise BadParameter("this user has no name: give yours with --as") from error
    if not name.strip():
        raise BadParameter("the name is empty", param_hint="--as")
    return name.strip()
