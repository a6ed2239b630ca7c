"""The command that assigns a project to another root and source."""

from __future__ import annotations

from caption_assets.automation.commands import open_instance
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import move
from caption_assets.resources import build_storage
from caption_assets.settings import load_settings


def move_project() -> str:
    """Assign the project to the present CAPTION_ROOT and CAPTION_SOURCE, and return a confirmation for the user."""
    settings = load_settings()
    project, storage = Project.of(settings), build_storage(settings)
    with open_instance() as instance:
        move(instance, project, storage)
    name = settings.project or "the default project"
    return f"{name} is now assigned to CAPTION_ROOT={storage.root_url} and CAPTION_SOURCE={storage.source_url}"
