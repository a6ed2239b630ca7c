"""Dagster's UI and daemon for one project, with a web server of its galleries, until Ctrl-C.

`dg dev` alone reports a taken port and Ctrl-C with tracebacks, and serves no galleries.
"""

from __future__ import annotations

import os
import socket
import sys
import tomllib
from pathlib import Path

from caption_assets.automation.commands import open_instance
from caption_assets.commands.child import child
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.errors import CaptionAssetsError
from caption_assets.report.galleries import serving_galleries
from caption_assets.report.ports import occupant
from caption_assets.resources import build_storage
from caption_assets.settings import load_settings
from caption_assets.store.root import Root

PORT = 3000


class PortTaken(CaptionAssetsError):
    """A port that another program listens on."""


def serve_project(port: int, port_option: str = "--port ") -> int:
    """Serve the UI on a port of this machine until SIGINT or SIGTERM, and return the exit status.

    The exit status is 0 after a signal, and 1 if Dagster ends by itself.

    Args:
        port: the port.
        port_option: the option that sets it, for messages.

    Raises:
        InstanceError: if DAGSTER_HOME is not set, or not a folder.
        PortTaken: if the port is taken.
        ProjectClash: if the instance has the project's name for another root or source.
        ServerError: if the galleries' port is taken.
        SettingsError: if a setting is invalid.
    """
    _check_port(port, port_option)
    settings = load_settings()
    with open_instance() as instance:
        check_claim(instance, Project.of(settings), build_storage(settings))
    target = [] if _is_dg_project(Path.cwd()) else ["-m", "caption_assets.definitions"]
    command = [sys.executable, "-m", "dagster_dg_cli.cli", "dev", "--port", str(port), *target]
    root = Root.open(settings.storage.root_url, settings.storage.root_access)
    stages = [stage.name for stage in settings.caption_recipe.stages]
    with serving_galleries(root, stages, settings.web_url):
        print(f"UI: http://127.0.0.1:{port}  Ctrl-C ends it", flush=True)
        # Dagster's servers otherwise make two empty folders in DAGSTER_HOME for telemetry that is switched off.
        environment = {"DAGSTER_DISABLE_TELEMETRY": "1", **os.environ}
        with child(command, env=environment) as process:
            pass
    return 0 if process.was_signaled else 1


def _is_dg_project(folder: Path) -> bool:
    """Whether dg finds the definitions of a folder by itself, with a user's own assets."""
    file = folder / "pyproject.toml"
    return file.is_file() and "dg" in tomllib.loads(file.read_text()).get("tool", {})


def _check_port(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an ended server do not count
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError as error:
            raise PortTaken(f"port {port} needs privileges: choose a port from 1024, such as {option}{PORT}") from error
        except OSError as error:
            remedy = f"stop it, or choose another port, such as {option}{port + 5}"
            raise PortTaken(f"port {port} is in use by {occupant(port)}: {remedy}") from error
