"""Captions video at scale, as Dagster assets: shards of clips in, Parquet tables of captions out.

The names below are the Python API. Each is imported when it is first used, so that importing the package takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from caption_assets.errors import CaptionAssetsError as CaptionAssetsError
    from caption_assets.errors import UnreadableClip as UnreadableClip
    from caption_assets.library.captioner import Captioner as Captioner
    from caption_assets.library.captioner import SampleModelWarning as SampleModelWarning
    from caption_assets.library.captioner import caption as caption
    from caption_assets.library.clips import probe as probe
    from caption_assets.library.clips import windows as windows
    from caption_assets.library.rows import WindowCaption as WindowCaption
    from caption_assets.store.dataset import read_table as read_table
    from caption_assets.video.probe import Probe as Probe
    from caption_assets.video.window import Window as Window

_MODULES = {
    "CaptionAssetsError": "errors",
    "Captioner": "library.captioner",
    "Probe": "video.probe",
    "SampleModelWarning": "library.captioner",
    "UnreadableClip": "errors",
    "Window": "video.window",
    "WindowCaption": "library.rows",
    "caption": "library.captioner",
    "probe": "library.clips",
    "read_table": "store.dataset",
    "windows": "library.clips",
}
"""Module of each name of the API."""
__all__ = [
    "CaptionAssetsError",
    "Captioner",
    "Probe",
    "SampleModelWarning",
    "UnreadableClip",
    "Window",
    "WindowCaption",
    "__version__",
    "caption",
    "probe",
    "read_table",
    "windows",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
