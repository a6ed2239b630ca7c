"""Dagster's UI and daemon over the data of `make demo`, or over CAPTION_ROOT: `make dev`.

Beside it the root, if it is a local folder, is served on this machine alone, so that the UI's links to galleries open.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from caption_assets.settings import load_settings
from caption_assets.store.root import Root
from scripts.child import child

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = REPOSITORY / "data"
"""The root of the demo."""
STATE = REPOSITORY / ".dagster" / "demo"
"""Folder for the demo's state of Dagster's instance; that of other data lies apart, in the repository's .dagster."""
PORT = "3000"
FILES_PORT = 3001
"""Port of the root's files. The links to them are stored in Dagster's instance, so it is always the same."""


class Files(SimpleHTTPRequestHandler):
    """Serves files and says nothing of each."""

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


def main() -> int:
    """Run until interrupted; returns the exit status."""
    # Dagster's instance keeps its state in the working directory: that of the demo, or of the commands of the README.
    chosen = os.environ.get("CAPTION_ROOT")
    folder = REPOSITORY if chosen else STATE
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    environment = {"DAGSTER_HOME": str(REPOSITORY), **os.environ, "CAPTION_ROOT": chosen or str(DATA)}
    settings = load_settings()
    root = Root.open(environment["CAPTION_ROOT"])
    command = [sys.executable, "-m", "dagster", "dev", "-p", PORT, "-m", "caption_assets.definitions"]
    if not root.is_local or settings.link_url:
        return _serve(command, environment)
    folder = Path(root.path).absolute()
    folder.mkdir(exist_ok=True)
    try:
        server = ThreadingHTTPServer(("127.0.0.1", FILES_PORT), partial(Files, directory=str(folder)))
    except OSError as error:
        sys.exit(
            f"dev: cannot serve {folder} on port {FILES_PORT} ({error.strerror}): stop what uses the port, or set "
            "CAPTION_LINK_URL to where the folder is served"
        )
    with server as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        return _serve(command, {**environment, "CAPTION_LINK_URL": f"http://127.0.0.1:{FILES_PORT}"})


def _serve(command: list[str], environment: dict[str, str]) -> int:
    with child(command, env=environment) as process:
        pass
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
