"""The formats of the dataset, a module for each family."""

from __future__ import annotations

from caption_assets.export.columns import stage_columns
from caption_assets.export.config import ExportConfig, Format
from caption_assets.export.formats.layout import FormatLayout
from caption_assets.export.formats.lines import jsonl
from caption_assets.export.formats.webdataset import webdataset

_LAYOUTS = {Format.WEBDATASET: webdataset, Format.JSONL: jsonl}


def layout_of(export: ExportConfig) -> FormatLayout:
    """The layout of an export's format for its stages.

    Raises:
        CaptionAssetsError: if two stages have a column of the same name.
    """
    return _LAYOUTS[export.format](stage_columns(export.graph.stages))
