from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.library.command import subtitle_names
from caption_assets.library.formats import Format, json_line, subtitles, text_lines
from caption_assets.library.rows import WindowCaption
from caption_assets.store.tables import Status

pytestmark = pytest.mark.fast

ROW = WindowCaption("a.mp4", 0, 0.0, 8.5, "caption", Status.OK, "A dog runs.")
UNREADABLE = WindowCaption("b.mp4", None, None, None, None, Status.FAILED, error_kind="text", error="it is a text")
CUE = re.compile(r"(\d+):(\d\d):(\d\d)[.,](\d{3}) --> (\d+):(\d\d):(\d\d)[.,](\d{3})")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
TIMES = st.floats(0, 24 * 3600)


def parse(content: str) -> list[tuple[float, float, list[str]]]:
    """The cues of a file: start, end, and lines of text. Blocks of lines are separated by one empty line."""
    cues = []
    for block in re.split(r"\n{2,}", content.strip("\n")):
        lines = block.splitlines()
        found = [number for number, line in enumerate(lines) if CUE.fullmatch(line)]
        if block not in ("", "WEBVTT"):
            assert found in ([0], [1])
            values = [int(value) for value in CUE.fullmatch(lines[found[0]]).groups()]  # type: ignore[union-attr]
            start, end = (h * 3600 + m * 60 + s + ms / 1000 for h, m, s, ms in (values[:4], values[4:]))
            cues.append((start, end, lines[found[0] + 1 :]))
    return cues


def test_text_names_clip_and_window_once() -> None:
    second = replace(ROW, stage="score", caption="yes", probabilities={"yes": 0.934, "no": 0.066})
    later = replace(ROW, window=1, start_seconds=8.5, end_seconds=3671.04, caption="One.\n\nTwo.")
    rows = [None, ROW, second, later, UNREADABLE]
    lines = [line for previous, row in pairwise(rows) if row for line in text_lines(row, previous)]
    assert lines == [
        "a.mp4",
        "  0:00.0 – 0:08.5",
        "    caption: A dog runs.",
        "    score: yes (93%)",
        "  0:08.5 – 1:01:11.0",
        "    caption: One.",
        "    Two.",
        "b.mp4",
        "  unreadable: it is a text",
    ]


def test_text_of_a_failed_window_has_the_reason() -> None:
    row = replace(ROW, status=Status.FAILED, caption=None, error="no room")
    assert text_lines(row, ROW) == ["    caption: failed: no room"]


@given(TEXTS)
def test_json_is_one_line_with_all_fields(text: str) -> None:
    line = json_line(replace(ROW, caption=text))
    assert "\n" not in line
    values = json.loads(line)
    assert (values["clip"], values["status"], values["caption"]) == ("a.mp4", "ok", text)
    assert list(values) == list(WindowCaption.__slots__)


def test_subrip_has_numbered_cues() -> None:
    rows = [ROW, replace(ROW, window=1, start_seconds=8.5, end_seconds=3671.04)]
    assert subtitles(rows, Format.SRT) == (
        "1\n00:00:00,000 --> 00:00:08,500\nA dog runs.\n\n2\n00:00:08,500 --> 01:01:11,040\nA dog runs.\n"
    )


def test_webvtt_has_a_header_and_escapes() -> None:
    assert subtitles([replace(ROW, caption="<b> & c")], Format.VTT) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:08.500\n&lt;b&gt; &amp; c\n"
    )


def test_windows_without_a_caption_have_no_cue() -> None:
    assert subtitles([UNREADABLE, replace(ROW, caption=None)], Format.SRT) == ""
    assert subtitles([UNREADABLE], Format.VTT) == "WEBVTT\n"


@pytest.mark.parametrize("form", [Format.SRT, Format.VTT])
@given(cues=st.lists(st.tuples(TIMES, TIMES, TEXTS), max_size=5))
def test_cues_can_be_parsed_whatever_the_captions_are(form: Format, cues: list[tuple[float, float, str]]) -> None:
    rows = [replace(ROW, start_seconds=min(a, b), end_seconds=max(a, b), caption=text) for a, b, text in cues]
    found = parse(subtitles(rows, form))
    assert len(found) == len(rows)
    for row, (start, end, lines) in zip(rows, found, strict=True):
        assert start == pytest.approx(row.start_seconds, abs=0.001)
        assert start < end
        assert all(line.strip() and "-->" not in line for line in lines)


def test_subtitles_have_the_clips_stem() -> None:
    clips = ["x/a.mp4", "https://host/b.mkv", "x/a.mkv", "y/a.mkv", "x/a.mp4"]
    assert list(subtitle_names(clips, Format.SRT).items()) == [
        ("x/a.mp4", "a.srt"),
        ("https://host/b.mkv", "b.srt"),
        ("x/a.mkv", "a.mkv.srt"),
        ("y/a.mkv", "a.mkv-2.srt"),
    ]


@given(st.lists(st.text(min_size=1)))
def test_subtitles_of_different_clips_have_different_names(clips: list[str]) -> None:
    names = subtitle_names(clips, Format.VTT)
    assert len(set(names.values())) == len(set(clips))
    assert not any("/" in name for name in names.values())
