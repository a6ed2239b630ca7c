"""The captioner of the Python API: captions video files with nothing set up."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import RecipeError
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.errors import CaptionAssetsError
from caption_assets.library.engine import open_engine
from caption_assets.library.rows import WindowCaption
from caption_assets.library.session import Session
from caption_assets.settings import load_settings
from caption_assets.sources.clip import Clip
from caption_assets.sources.files import find_clips
from caption_assets.workers.sandbox import Sandbox

PathOrUrl = str | os.PathLike[str]
SAMPLE_WARNING = (
    "the sample model knows only its toy world of moving shapes: what it says about other videos is nonsense; choose "
    "another model with {} or CAPTION_MODEL, such as qwen3 on a GPU"
)


class SampleModelWarning(UserWarning):
    """A warning that the captions are those of the sample model."""


class UnknownStage(CaptionAssetsError, ValueError):
    """A name that is not that of a stage of the recipe."""


class Captioner:
    """Captions video files on one engine.

    The engine starts with the first window and runs until ``close``, or until the ``with`` block ends. All other
    settings come from ``CAPTION_*`` environment variables. Nothing is stored except the model's weights, in
    ``CAPTION_CACHE``. It needs no main guard, and works where an event loop is running already, as in a notebook.

    Args:
        recipe: a built-in recipe, or a YAML file: a path or an ``s3://`` URL. Default: ``CAPTION_RECIPE``, or the
            model's recipe.
        model: a model's key, Hub id or folder. Default: ``CAPTION_MODEL``, or ``sample``, with a warning.

    Raises:
        SettingsError: if the recipe, the model or another setting is invalid.
        RecipeError: if the recipe has stages with a model of their own, which take a second engine.
    """

    def __init__(self, recipe: PathOrUrl | None = None, model: str | None = None) -> None:
        given: dict[str, Any] = {"recipe": recipe if recipe is None else os.fspath(recipe), "model": model}
        self._settings = load_settings(**{name: value for name, value in given.items() if value is not None})
        self.recipe: Recipe = self._settings.caption_recipe
        """Model, stages and sampling."""
        if others := [stage.name for stage in self.recipe.stages if stage not in self.recipe.own_stages]:
            raise RecipeError(
                f"the stage {others[0]} of the recipe {self.recipe.graph.name!r} has a model of its own, and a "
                "captioner has one engine: remove the stage from the recipe, or use `caption-assets run`"
            )
        if self._settings.variant.bundled:
            warnings.warn(SAMPLE_WARNING.format("the argument model"), SampleModelWarning, stacklevel=2)
        self._session = Session(
            self.recipe,
            self._open_engine,
            self._settings.windowing,
            Sandbox(self._settings.decode, self._settings.decode_workers),
            self._settings.storage.source_access,
        )
        # Also at the exit of a program that did not close it: threads of an engine that runs then may log errors.
        self._closing = weakref.finalize(self, self._session.close)

    def _open_engine(self) -> AbstractAsyncContextManager[EngineSupervisor]:
        return open_engine(self._settings, self.recipe)

    def caption(self, paths: PathOrUrl | Iterable[PathOrUrl], stage: str | None = None) -> Iterator[WindowCaption]:
        """Caption video files, and yield each row as soon as it and the rows before it are finished.

        The rows have the order of the paths, then of the windows of each clip, then of the recipe's stages. A clip that
        cannot be read has one row with the reason, as has a file that does not exist. Closing the iterator stops the
        call.

        Args:
            paths: a path or several: video files, folders of them, tars and lists as in a source of shards, or URLs
                (``s3://`` or ``https://``). Folders are searched at any depth, and have sidecar files like a shard.
            stage: the stage whose rows are wanted; it and the stages that it needs are captioned. Default: all.

        Raises:
            UnknownStage: if the recipe has no such stage.
            ValueError: if the captioner is closed.
            WeightsError: if the model's weights cannot be downloaded.
            EngineError: if the engine does not start, or crashes too often.
        """
        if not self._closing.alive:
            raise ValueError("the captioner is closed: make another one")
        return self._caption(self._find(paths), None if stage is None else self._stage(stage))

    def _find(self, paths: PathOrUrl | Iterable[PathOrUrl]) -> Iterator[Clip]:
        several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        return find_clips(several, self._settings.storage.source_access)

    def _caption(self, clips: Iterable[Clip], stage: Stage | None) -> Iterator[WindowCaption]:
        return self._session.caption(clips, stage)

    def _stage(self, name: str) -> Stage:
        names = [stage.name for stage in self.recipe.stages]
        if name not in names:
            raise UnknownStage(f"the recipe {self.recipe.graph.name!r} has no stage {name!r}: use {', '.join(names)}")
        return self.recipe.graph.stage(name)

    def close(self) -> None:
        """Stop the calls in progress, the engine and the workers."""
        self._closing()

    def __enter__(self) -> Captioner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def caption(
    paths: PathOrUrl | Iterable[PathOrUrl], recipe: PathOrUrl | None = None, model: str | None = None
) -> list[WindowCaption]:
    """Caption video files on an engine that runs for this call alone; see ``Captioner`` for several calls.

    Args:
        paths: a path or several: video files, folders of them, or URLs; see ``Captioner.caption``.
        recipe: a built-in recipe, or a YAML file; see ``Captioner``.
        model: a model's key, Hub id or folder; see ``Captioner``.

    Returns:
        The rows, in the order of ``Captioner.caption``. ``pandas.DataFrame(rows)`` has a column for each field.

    Raises:
        SettingsError: if the recipe, the model or another setting is invalid.
        RecipeError: if the recipe has stages with a model of their own.
        WeightsError: if the model's weights cannot be downloaded.
        EngineError: if the engine does not start, or crashes too often.
    """
    with Captioner(recipe, model) as captioner:
        return list(captioner.caption(paths))
