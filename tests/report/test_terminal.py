from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from caption_assets.store.corrections import Correction, Decision, save_correction
from caption_assets.store.root import Root
from tests.cli import run_cli
from tests.report.windows import broken, captioned, failed, publish, window

pytestmark = pytest.mark.fast

FILM, CAR, DAMAGED = window("film.mp4"), window("car.mp4"), broken("damaged.mp4")
LONG = "A red square moves over a blue floor. " * 10


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    """A shard with a captioned window, one whose second stage failed, and an unreadable clip."""
    monkeypatch.setenv("CAPTION_ROOT", str(tmp_path))
    monkeypatch.setenv("CAPTION_RECIPE", "general")
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    root = Root.open(str(tmp_path))
    publish(
        root,
        [FILM, CAR, DAMAGED],
        [captioned(FILM, LONG, flags=["repetition"]), captioned(CAR, "A car."), failed(DAMAGED, "unreadable")],
        [captioned(FILM, "Short."), failed(CAR), failed(DAMAGED, "unreadable")],
    )
    return root


def shown(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert run_cli("show", "shard", *options) is None
    return capsys.readouterr().out


def test_captions_are_shown_by_window(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys).splitlines() == [
        "shard: 3 clips, 2 windows, 1 unreadable; stage1_captions 2/2, stage2_captions 1/2",
        "",
        "film.mp4  window 0, 0:00.0 to 0:04.0",
        f"  stage1_captions: {LONG}  [repetition]",
        "  stage2_captions: Short.",
        "",
        "car.mp4  window 0, 0:00.0 to 0:04.0",
        "  stage1_captions: A car.",
        "  stage2_captions: failed: engine: the engine crashed",
        "",
        "damaged.mp4  no window",
        "  unreadable: the index is missing",
    ]


def test_corrections_follow_their_captions(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    row = captioned(FILM, "An earlier text.")
    made = Correction.of(row, "stage2_captions", Decision.REWRITE, "ann", caption="Better.")
    at = datetime(2026, 11, 29, 23, 5, tzinfo=UTC)
    save_correction(root, "shard", replace(made, decided_at=at))
    lines = shown(capsys, "--limit", "1").splitlines()
    more = lines.index("  stage2_captions: Short.") + 1
    assert lines[more : more + 3] == [
        "    rewritten by ann, 2026-11-29 23:05 UTC",
        "    text: Better.",
        "    outdated, decided on: An earlier text.",
    ]
    [window] = json.loads(shown(capsys, "--limit", "1", "--json"))["windows"]
    assert window["stages"]["stage2_captions"]["correction"] == {
        "decision": "rewrite",
        "reviewer": "ann",
        "decided_at": "2026-11-29T23:05:00+00:00",
        "caption": "Better.",
        "reason": None,
        "reviewed_caption": "An earlier text.",
        "outdated": True,
    }
    assert "correction" not in window["stages"]["stage1_captions"]


def test_options_select_windows_and_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert "film.mp4" not in shown(capsys, "--failed")
    first = shown(capsys, "--limit", "1", "--stage", "stage2_captions")
    assert "car.mp4" not in first
    assert "stage1_captions" not in first
    assert first.endswith("2 more windows: raise --limit, or leave it out\n")


def test_captions_of_another_manifest_are_marked(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    publish(root, [window("film.mp4", end_seconds=9.0)])
    assert "not captioned: the manifest is newer than these captions" in shown(capsys)


def test_json_has_all_windows(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(shown(capsys, "--json"))
    assert found["shard"] == "shard"
    stages = [{name: row["caption"] for name, row in one["stages"].items()} for one in found["windows"]]
    assert stages[:2] == [
        {"stage1_captions": LONG, "stage2_captions": "Short."},
        {"stage1_captions": "A car.", "stage2_captions": None},
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shards"], "has no tables of shard 'shards'; did you mean shard?"),
        (["other-name"], "has no tables of shard 'other-name'; it has shard"),
        (["shard", "--stage", "stage2"], "no captions of stage 'stage2'; it has stage1_captions, stage2_captions"),
    ],
)
def test_wrong_name_is_an_error_with_similar_names(arguments: list[str], message: str) -> None:
    assert message in str(run_cli("show", *arguments))
