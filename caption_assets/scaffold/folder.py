"""The project folder: settings in ``.env``, a Dagster instance, a recipe, and what ``dg`` and CI need."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from caption_assets import __version__
from caption_assets.errors import CaptionAssetsError
from caption_assets.models.variants import find_variant
from caption_assets.store.root import Root

ALLOWED = frozenset({".git", ".venv"})
"""Entries of a folder that counts as empty."""
HOME = ".dagster"
"""DAGSTER_HOME in the project folder."""
SHARDS = "shards"
"""The default source in the project folder. It is empty: runs report files that are not shards."""
_SHOWN = 5
"""Maximum number of names in a message."""
_FILES = {
    "README.md": "README.md",
    ".gitignore": "gitignore",
    "pyproject.toml": "pyproject.toml",
    "definitions.py": "definitions.py.txt",
}
"""Files of the project, each with its template."""
_UNSAFE = re.compile(r"[\r\n'\"\\$}#]")
"""Characters with a meaning in a ``.env``."""


class ScaffoldError(CaptionAssetsError):
    """A project folder that cannot be made."""


@dataclass(frozen=True, slots=True)
class ProjectFolder:
    """A project folder to be made."""

    path: Path
    """Absolute path."""
    root: str
    """CAPTION_ROOT: an absolute path or an s3:// URL."""
    source: str
    """CAPTION_SOURCE: an absolute path or an s3:// URL."""
    model: str | None
    """CAPTION_MODEL; None for the default."""

    @classmethod
    def of(cls, path: Path, root: str | None, source: str | None, model: str | None) -> ProjectFolder:
        """The folder with absolute paths, by default with the root and the source inside.

        Raises:
            StoreError: if root or source is not the URL of a supported store.
            UnknownModel: if there is no such model.
        """
        path = Path(os.path.abspath(path.expanduser()))
        if model and "/" not in model:
            find_variant(model)
        return cls(path, _absolute(root or str(path / "captions")), _absolute(source or str(path / SHARDS)), model)

    def make(self) -> None:
        """Write all files.

        Raises:
            ScaffoldError: if the folder is not empty, a path cannot be written into ``.env``, or writing fails.
        """
        texts = self._texts()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_empty()
            for name, text in texts.items():
                file = self.path / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
            if self.source == str(self.path / SHARDS):
                (self.path / SHARDS).mkdir()
        except OSError as error:
            raise ScaffoldError(f"cannot write {error.filename}: {error.strerror}") from error

    def _check_empty(self) -> None:
        names = sorted({entry.name for entry in self.path.iterdir()} - ALLOWED)
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise ScaffoldError(
                f"{self.path} is not empty ({', '.join(names[:_SHOWN])}{more}): give a new folder, or an empty one"
            )

    def _texts(self) -> Mapping[str, str]:
        return {
            **{name: _template(template) for name, template in _FILES.items()},
            ".env": self._env(),
            f"{HOME}/dagster.yaml": instance_config(),
            "recipe.yaml": recipe_example(),
            ".github/workflows/captions.yml": _template("workflow.yml").replace("{version}", __version__),
        }

    def _env(self) -> str:
        for path in (str(self.path), self.root, self.source, self.model or ""):
            if _UNSAFE.search(path):
                raise ScaffoldError(
                    f"{path!r} contains a character with a meaning in .env (a quote, \\, $, }}, # or a line break): "
                    "give another path"
                )
        model = f"CAPTION_MODEL=${{CAPTION_MODEL:-{self.model}}}" if self.model else "# CAPTION_MODEL=qwen2.5"
        return (
            "# Settings of this project, for commands that are started in this folder. In lines of the form\n"
            "# NAME=${NAME:-value}, a variable of the environment comes first; other lines replace it.\n"
            f"CAPTION_ROOT=${{CAPTION_ROOT:-{self.root}}}\n"
            f"CAPTION_SOURCE=${{CAPTION_SOURCE:-{self.source}}}\n"
            f"CAPTION_RECIPE=${{CAPTION_RECIPE:-{self.path / 'recipe.yaml'}}}\n"
            "# The default model, `sample`, describes moving shapes and nothing else. qwen2.5 needs a GPU.\n"
            f"{model}\n"
            "\n"
            "# The Dagster instance, which belongs to this root and source.\n"
            f"DAGSTER_HOME={self.path / HOME}\n"
            "# Dagster's servers otherwise make two empty folders for telemetry, which dagster.yaml switches off.\n"
            "DAGSTER_DISABLE_TELEMETRY=1\n"
        )


def instance_config() -> str:
    """``dagster.yaml`` for a DAGSTER_HOME that holds the instance's state: the repository's, without its last part."""
    return _template("dagster.yaml").partition("\n# Only in the repository")[0]


def write_instance(home: Path) -> None:
    """Write ``dagster.yaml`` into a DAGSTER_HOME, whose state stays."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_text(instance_config())


def recipe_example() -> str:
    """A recipe file with the stages of ``general``."""
    general = (files("caption_assets.captioning") / "recipes" / "general.yaml").read_text()
    return _template("recipe_head.yaml") + general + _template("recipe_tail.yaml")


def _template(name: str) -> str:
    return (files("caption_assets.scaffold") / "files" / name).read_text()


def _absolute(url: str) -> str:
    folder = Root.open(url)
    return os.path.abspath(folder.path) if folder.is_local else url.rstrip("/")
