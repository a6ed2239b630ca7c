"""Formats of rows: text for people, JSON lines, and the subtitle formats SubRip and WebVTT."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from enum import StrEnum

from caption_assets.library.rows import WindowCaption

EN_DASH = "\N{EN DASH}"
INDENT = "  "


class Format(StrEnum):
    """A format of rows."""

    TEXT = "text"
    JSON = "json"
    SRT = "srt"
    """SubRip."""
    VTT = "vtt"
    """WebVTT (https://www.w3.org/TR/webvtt1/)."""

    @property
    def is_subtitles(self) -> bool:
        """Whether it has a file of its own for each clip."""
        return self in (Format.SRT, Format.VTT)


def json_line(row: WindowCaption) -> str:
    """A row as a JSON object in one line."""
    return json.dumps(asdict(row), ensure_ascii=False)


def text_lines(row: WindowCaption, previous: WindowCaption | None = None) -> list[str]:
    """A row for people: clip and window, each if the previous row has another, and the answer or the error."""
    lines = [row.clip] if previous is None or previous.clip != row.clip else []
    if row.window is None:
        return [*lines, f"{INDENT}unreadable: {row.error}"]
    if lines or previous is None or previous.window != row.window:
        lines.append(f"{INDENT}{_clock(row.start_seconds)} {EN_DASH} {_clock(row.end_seconds)}")
    answer = f"failed: {row.error}" if row.caption is None else row.caption
    if row.caption is not None and row.probabilities:
        answer = f"{row.caption} ({row.probabilities[row.caption]:.0%})"
    return [*lines, *(f"{2 * INDENT}{line}" for line in _text(f"{row.stage}: {answer}").splitlines())]


def subtitles(rows: Iterable[WindowCaption], form: Format) -> str:
    """The captions of one clip as subtitles, a cue for each window with a caption.

    Args:
        rows: the rows of one stage.
        form: ``Format.SRT`` or ``Format.VTT``.
    """
    cues = [_cue(row, row.caption, form) for row in rows if row.caption is not None]
    if form is Format.SRT:
        cues = [f"{number}\n{cue}" for number, cue in enumerate(cues, 1)]
    return "\n".join(["WEBVTT\n"] * (form is Format.VTT) + cues)


def _cue(row: WindowCaption, caption: str, form: Format) -> str:
    start, end = (round(1000 * (seconds or 0.0)) for seconds in (row.start_seconds, row.end_seconds))
    mark = "," if form is Format.SRT else "."
    text = _text(caption)
    # An arrow would begin another cue. WebVTT has escapes, and SubRip none.
    text = text.replace("-->", "->") if form is Format.SRT else _escape(text)
    return f"{_timestamp(start, mark)} --> {_timestamp(max(end, start + 1), mark)}\n{text}\n"


def _text(text: str) -> str:
    """A text without empty lines, which would end a cue, and without control characters."""
    lines = ("".join(filter(str.isprintable, line.replace("\t", " "))).strip() for line in text.splitlines())
    return "\n".join(filter(None, lines))


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _timestamp(milliseconds: int, mark: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{mark}{rest:03}"


def _clock(seconds: float | None) -> str:
    """Minutes and seconds, such as ``1:07.5``; with hours if there are any."""
    tenths = round(10 * (seconds or 0.0))
    minutes, rest = divmod(tenths, 600)
    hours = f"{minutes // 60}:{minutes % 60:02}" if minutes >= 60 else str(minutes)
    return f"{hours}:{rest // 10:02}.{rest % 10}"
