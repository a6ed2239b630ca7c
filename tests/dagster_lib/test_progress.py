import time

import pytest

from caption_assets.dagster_lib.progress import CommandProgress, WindowProgress

pytestmark = pytest.mark.fast


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic time, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_window_progress_reports_rate_and_remaining_time_at_intervals(clock: list[float]) -> None:
    progress = WindowProgress()
    progress.expect(50, 41)
    messages = []
    clock[0] += 60  # the rate excludes the engine's start
    for _ in range(21):
        messages.append(progress.advance())
        clock[0] += 1
    assert messages[0] == ""
    assert [message for message in messages if message] == [
        "1.0 windows/s, 0:00:30 left for the shards in progress",
        "1.0 windows/s, 0:00:20 left for the shards in progress",
    ]


def test_window_progress_of_a_command_counts_all_its_windows_and_engine_starts(clock: list[float]) -> None:
    tags = CommandProgress(windows_before=0, windows=400, runs_after=2).tags
    progress = WindowProgress(CommandProgress.of(tags))
    progress.expect(80, 20)
    clock[0] += 30  # the start of the engine
    assert progress.advance() == "61 of 400 in all"
    clock[0] += 10
    assert progress.advance() == "62 of 400 in all; 0.1 windows/s, 0:57:20 left"


def test_window_progress_of_a_command_follows_from_its_earlier_runs(clock: list[float]) -> None:
    progress = WindowProgress(CommandProgress(windows_before=100, windows=104, runs_after=0, seconds_before=170))
    progress.expect(4, 4)
    clock[0] += 30
    progress.advance()
    clock[0] += 4
    assert progress.advance() is None
    clock[0] += 6
    assert progress.advance() == "103 of 104 in all; 0.2 windows/s, 0:00:02 left"


def test_run_without_a_command_has_no_progress_of_one() -> None:
    assert CommandProgress.of({"dagster/partition": "a"}) is None
