"""Helpers for tests of project folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from caption_assets.scaffold.folder import ProjectFolder

REPOSITORY = Path(__file__).parent.parent.parent


def make(path: Path, root: str | None = None, source: str | None = None, model: str | None = None) -> ProjectFolder:
    project = ProjectFolder.of(path, root, source, model)
    project.make()
    return project


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """The variables of this process without settings, with a folder as the home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CAPTION_", "DAGSTER_"))}
    return {**kept, "HOME": str(folder), "PYTHONPATH": str(REPOSITORY), **variables}


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment's ``bin`` in a folder, without settings but those of its ``.env``."""
    program, *arguments = command
    full = [sys.executable, "-W", "ignore", str(Path(sys.executable).with_name(program)), *arguments]
    return subprocess.run(
        full, cwd=folder, env=environment(folder, **variables), capture_output=True, text=True, timeout=120
    )
