"""The formats of the dataset, a module for each family."""

from __future__ import annotations

from caption_assets.export.columns import stage_columns
from caption_assets.export.config import ExportConfig, Format
from caption_assets.export.formats.chat import chat, conversations
from caption_assets.export.formats.cosmos import cosmos
from caption_assets.export.formats.energon import energon
from caption_assets.export.formats.layout import FormatLayout
from caption_assets.export.formats.lines import csv_lines, jsonl, preset
from caption_assets.export.formats.pairs import pairs
from caption_assets.export.formats.webdataset import webdataset

_LAYOUTS = {
    Format.WEBDATASET: webdataset,
    Format.ENERGON: energon,
    Format.JSONL: jsonl,
    Format.CSV: csv_lines,
    Format.PAIRS: pairs,
    Format.COSMOS: cosmos,
    Format.CHAT: chat,
    Format.CONVERSATIONS: conversations,
}


def layout_of(export: ExportConfig) -> FormatLayout:
    """The layout of an export's format for its stages.

    Raises:
        UnknownColumn: if a column map names a column that the dataset does not have.
        CaptionAssetsError: if two stages have a column of the same name.
    """
    return _LAYOUTS.get(export.format, preset)(export, stage_columns(export.graph.stages))
