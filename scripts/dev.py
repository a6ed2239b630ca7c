"""Dagster's UI and daemon over CAPTION_ROOT, by default the demo's data, for `make dev`.

A web server on loopback serves a local root beside them, so that the UI's links to galleries open.
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
"""Root of the demo."""
STATE = REPOSITORY / ".dagster" / "demo"
"""Folder of the Dagster instance's state for the demo. The state for other roots is in the repository's .dagster."""
PORT = "3000"
FILES_PORT = 3001
"""Port of the root's web server. It is fixed, because Dagster's instance stores the links."""


class Files(SimpleHTTPRequestHandler):
    """Request handler for files, without a log line for each."""

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""


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
            f"dev: cannot serve {folder} on port {FILES_PORT} ({error.strerror}): stop the program that uses the port, "
            "or set CAPTION_LINK_URL to the folder's web address"
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
