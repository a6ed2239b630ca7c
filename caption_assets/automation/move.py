"""Move a project: tell the Dagster instance that the project's root is another one now.

    python -m caption_assets.automation.move

The settings and DAGSTER_HOME come from the environment. Nothing is copied or removed; run it once the files are
where CAPTION_ROOT says.
"""

from __future__ import annotations

import argparse
import sys

import dagster as dg

from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import move
from caption_assets.errors import CaptionAssetsError
from caption_assets.resources import build_storage
from caption_assets.settings import load_settings


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    try:
        settings = load_settings()
        project, storage = Project(settings.project), build_storage(settings)
        with dg.DagsterInstance.get() as instance:
            move(instance, project, storage)
    except CaptionAssetsError as error:
        sys.exit(f"error: {error}")
    print(f"{settings.project or 'the default project'} now stands for CAPTION_ROOT={storage.root_url}")


if __name__ == "__main__":
    main()
