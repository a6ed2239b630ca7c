"""Dagster's UI and daemon over CAPTION_ROOT, by default over the demo and its own Dagster instance, for `make dev`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from caption_assets.errors import CaptionAssetsError
from caption_assets.scaffold.folder import write_instance

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = REPOSITORY / "data"
"""Root of the demo."""
HOME = REPOSITORY / ".dagster" / "demo"
"""DAGSTER_HOME of the demo. The state of the instance for other roots is in the repository's .dagster."""


def demo_environment() -> dict[str, str]:
    """The settings of the demo, whose instance is written if it does not exist."""
    write_instance(HOME)
    return {"DAGSTER_HOME": str(HOME), "CAPTION_ROOT": str(DATA)}


def main() -> int:
    """Run until interrupted, and return the exit status."""
    from caption_assets.commands.dev import PORT, serve_project  # here: the demo imports this module, but no Dagster

    if "CAPTION_ROOT" in os.environ:
        os.environ.setdefault("DAGSTER_HOME", str(REPOSITORY))
        os.chdir(REPOSITORY)  # the paths in its dagster.yaml are relative
    else:
        os.environ.update(demo_environment())
        os.chdir(HOME)
    try:
        return serve_project(int(sys.argv[1]) if sys.argv[1:] else PORT, "make dev PORT=")
    except CaptionAssetsError as error:
        sys.exit(f"dev: {error}")


if __name__ == "__main__":
    sys.exit(main())
