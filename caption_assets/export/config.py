"""The settings of the export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Any

from caption_assets.captioning.output import TextOutput
from caption_assets.captioning.stages import StageGraph
from caption_assets.models.cache import CacheConfig
from caption_assets.models.tokenizer import TokenizerCheckpoint
from caption_assets.store.failure_limits import FailureLimits

LAYOUT_VERSION = "3"
"""Version of the file layout. Raise it when the same tables would give different files."""
MAX_LONGEST_SIDE = 8192
"""Maximum of ``CutConfig.longest_side``: the width of the largest pictures of H.264 levels, 8192x4320."""


class Format(StrEnum):
    """The formats by name."""

    WEBDATASET = "webdataset"
    ENERGON = "energon"
    JSONL = "jsonl"
    CSV = "csv"
    PAIRS = "pairs"
    LTX = "ltx"
    VIDEOX_FUN = "videox-fun"
    FASTVIDEO = "fastvideo"
    OPEN_SORA = "open-sora"
    MUSUBI = "musubi"
    COSMOS = "cosmos"
    CHAT = "chat"
    CONVERSATIONS = "conversations"

    @property
    def has_own_columns(self) -> bool:
        """Whether its columns can be chosen."""
        return self in (Format.JSONL, Format.CSV)

    @property
    def has_video_files(self) -> bool:
        """Whether its video files lie beside its files of samples, whether windows are cut or not."""
        return self not in (Format.WEBDATASET, Format.ENERGON, Format.JSONL, Format.CSV)

    @property
    def default_cut(self) -> Cut:
        """How windows become files, unless a setting says otherwise: its trainer reads a file from its beginning."""
        return Cut.EXACT if self.has_video_files and self is not Format.COSMOS else Cut.NONE

    @property
    def has_full_paths(self) -> bool:
        """Whether its trainer resolves paths against its working directory, or against a folder of fixed name."""
        return self in (Format.FASTVIDEO, Format.OPEN_SORA, Format.MUSUBI, Format.CHAT)


class Cut(StrEnum):
    """How windows become files."""

    NONE = "none"
    """No files of windows: the clips stay as they are."""
    EXACT = "exact"
    """A file with exactly the window's frames: copied where the container allows it, else encoded anew."""
    REMUX = "remux"
    """The window's part of the stream as it is, from the last keyframe at or before its first frame."""


@dataclass(frozen=True, slots=True)
class CutConfig:
    """The settings of window files."""

    cut: Cut = Cut.NONE
    fps: float | None = None
    """Constant frame rate of the files; None for the clip's."""
    longest_side: int | None = None
    """Maximum width and height, in pixels; None for the clip's."""
    seconds: float | None = None
    """Maximum duration, from the window's start; None for the whole window."""
    audio: bool = False
    """Whether the files have the clip's audio."""

    def check(self) -> None:
        """Validate the combination of the settings.

        Raises:
            ValueError: if an option has no effect with this way to cut.
        """
        options = {"FPS": self.fps, "LONGEST_SIDE": self.longest_side, "SECONDS": self.seconds}
        given = {f"CAPTION_EXPORT_{name}": value for name, value in options.items() if value is not None}
        if self.cut is not Cut.EXACT and given:
            name, value = next(iter(given.items()))
            raise ValueError(
                f"{name}={value:g} has no effect with CAPTION_EXPORT_CUT={self.cut}: set CAPTION_EXPORT_CUT=exact, or "
                f"unset {name}"
            )
        if self.cut is Cut.NONE and self.audio:
            raise ValueError(
                "CAPTION_EXPORT_AUDIO=true has no effect with CAPTION_EXPORT_CUT=none, as clips keep their audio: "
                "unset CAPTION_EXPORT_AUDIO"
            )


class OverLimit(StrEnum):
    """What becomes of a text with too many tokens."""

    KEEP = "keep"
    """It is exported and counted."""
    CUT = "cut"
    """It ends with the last sentence that fits, or within its first sentence with the last word."""
    LEAVE_OUT = "leave_out"
    SHORTER = "shorter"
    """The longest caption of another stage that fits replaces it; if there is none, it is cut."""


@dataclass(frozen=True, slots=True)
class BudgetConfig:
    """The settings of the budget of texts in tokens."""

    tokenizer: TokenizerCheckpoint
    """The trainer's tokenizer."""
    cache: CacheConfig
    """The cache of its files."""
    max_tokens: int | None = None
    """Maximum length of a text, with special tokens; None for the tokenizer's."""
    over_limit: OverLimit = OverLimit.KEEP

    @property
    def identity(self) -> Mapping[str, str | int | None]:
        """The values that decide the dataset."""
        return {"tokenizer": self.tokenizer.folder, "max_tokens": self.max_tokens, "over_limit": self.over_limit}


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """The settings of the export."""

    format: Format
    file_bytes: int
    """Maximum size of a file of samples, in bytes; a larger clip gets its own file."""
    graph: StageGraph
    """The stages of the recipe."""
    limits: FailureLimits = field(default_factory=FailureLimits)
    """Limits on the failures of a shard that is exported."""
    license: str | None = None
    """License for the card: an SPDX identifier in the Hub's spelling, such as ``cc-by-4.0``."""
    texts: Mapping[str, float] = field(default_factory=dict)
    """The stages whose captions are trained on, with their weights; empty for the last stage with text."""
    cut: CutConfig = field(default_factory=CutConfig)
    budget: BudgetConfig | None = None
    """The budget of texts in tokens; None if tokens are not counted."""
    max_duplicates: int | None = None
    """Approximate number of windows with one text to keep over the whole dataset; None for all."""
    where: str | None = None
    """SQL condition that selects windows; None for those with all captions and without serious flags."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The columns of jsonl and csv, as a column map; empty for the dataset's own."""
    folder: str | None = None
    """The dataset's folder as the trainer sees it, with which paths begin; None for paths relative to that folder."""
    instruction: str = "Describe the video."
    """The question of a chat whose answer is the text."""

    @property
    def has_videos(self) -> bool:
        """Whether windows have video files of their own, or clips have, in the dataset's folder."""
        return self.format.has_video_files or self.cut.cut is not Cut.NONE

    def trainer_path(self, path: str) -> str:
        """A path relative to the dataset's folder, as the trainer needs it."""
        return f"{self.folder}/{path}" if self.folder else path

    @property
    def form(self) -> str:
        """Identity of the files of samples: those of shards with the same one can be merged."""
        form = {"columns": self.columns, "folder": self.folder, "instruction": self.instruction, "cut": self.has_videos}
        return f"{LAYOUT_VERSION}-{self.format}-{sha256(json.dumps(form).encode()).hexdigest()[:8]}"

    @property
    def text_weights(self) -> Mapping[str, float]:
        """The stages whose captions are trained on, with their weights."""
        return self.texts or {self._last_text: 1.0}

    @property
    def version(self) -> str:
        """Version of the layout and of the settings that decide the files."""
        cut = self.cut
        files = "" if cut.cut is Cut.NONE else f"-{cut.cut}-{cut.fps}-{cut.longest_side}-{cut.seconds}-{cut.audio}"
        return f"{LAYOUT_VERSION}-{self.format}-{self.file_bytes}{files}"

    @property
    def code_version(self) -> str:
        """Version of everything that decides the dataset: changes make the exported shards stale."""
        identity = {**self.selection, "form": self.form, "max_duplicates": self.max_duplicates}
        return f"{self.version}-{sha256(json.dumps(identity).encode()).hexdigest()[:8]}"

    @property
    def selection(self) -> Mapping[str, Any]:
        """The settings that select windows and their texts in each shard, as JSON."""
        budget = None if self.budget is None else self.budget.identity
        return {"where": self.where, "texts": dict(self.text_weights), "budget": budget}

    @property
    def _last_text(self) -> str:
        stages = self.graph.stages
        texts = [stage.name for stage in stages if isinstance(stage.output, TextOutput)]
        return texts[-1] if texts else stages[-1].name
