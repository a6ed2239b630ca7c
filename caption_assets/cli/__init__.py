"""The command line: the console script ``caption-assets``.

Each command imports what it runs when it is called: ``--version`` and ``--help`` load neither Dagster nor torch.
"""

import sys

from caption_assets.cli import captioning as captioning
from caption_assets.cli import gallery as gallery
from caption_assets.cli import init as init
from caption_assets.cli import label_studio as label_studio
from caption_assets.cli import machine as machine
from caption_assets.cli import project as project
from caption_assets.cli import reading as reading
from caption_assets.cli import recipes as recipes
from caption_assets.cli import review as review
from caption_assets.cli import running as running
from caption_assets.cli import sample as sample
from caption_assets.cli import status as status
from caption_assets.cli.app import app as app
from caption_assets.errors import CaptionAssetsError


def main() -> None:
    """Run the command line. An error exits with status 1 and one message, or with its traceback after ``--debug``."""
    try:
        app(prog_name="caption-assets")
    except Exception as error:
        if "--debug" in sys.argv[1:]:
            raise
        if isinstance(error, CaptionAssetsError):
            sys.exit(f"error: {error}")
        sys.exit(f"error: {type(error).__name__}: {error}; run the command with --debug for the traceback")
