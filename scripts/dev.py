"""Dagster's UI and daemon over CAPTION_ROOT, by default the demo's data, for `make dev`.

A web server on loopback serves the galleries beside them, so that the UI's links to them open.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from caption_assets.report.galleries import serving_galleries
from caption_assets.report.server import ServerError
from caption_assets.settings import load_settings
from caption_assets.store.root import Root
from scripts.child import child

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = REPOSITORY / "data"
"""Root of the demo."""
STATE = REPOSITORY / ".dagster" / "demo"
"""Folder of the Dagster instance's state for the demo. The state for other roots is in the repository's .dagster."""
PORT = "3000"


def main() -> int:
    """Run until interrupted, and return the exit status."""
    # Dagster's instance keeps its state below the working directory. With CAPTION_ROOT, this is the repository, as for
    # the README's commands.
    chosen = os.environ.get("CAPTION_ROOT")
    folder = REPOSITORY if chosen else STATE
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    environment = {"DAGSTER_HOME": str(REPOSITORY), **os.environ, "CAPTION_ROOT": chosen or str(DATA)}
    settings = load_settings()
    root = Root.open(environment["CAPTION_ROOT"], settings.storage.root_access)
    command = [sys.executable, "-m", "dagster", "dev", "-p", PORT, "-m", "caption_assets.definitions"]
    stages = [stage.name for stage in settings.caption_recipe.stages]
    try:
        with serving_galleries(root, stages, settings.web_url), child(command, env=environment) as process:
            pass
    except ServerError as error:
        sys.exit(f"dev: {error}")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
