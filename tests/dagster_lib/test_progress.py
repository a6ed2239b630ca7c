import time

import pytest

from caption_assets.dagster_lib.progress import WindowProgress

pytestmark = pytest.mark.fast


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic time, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_window_progress_reports_rate_and_remaining_time_at_intervals(clock: list[float]) -> None:
    progress = WindowProgress()
    progress.expect(41)
    messages = []
    clock[0] += 60  # the rate excludes the engine's start
    for _ in range(21):
        messages.append(progress.advance(last=False))
        clock[0] += 1
    assert [message for message in messages if message] == [
        "the first window of this run",
        "1.0 windows/s, 0:00:30 left for the shards in progress",
        "1.0 windows/s, 0:00:20 left for the shards in progress",
    ]


def test_window_progress_reports_the_last_window_of_a_shard(clock: list[float]) -> None:
    progress = WindowProgress()
    progress.expect(2)
    assert progress.advance(last=False) is None
    clock[0] += 0.5
    assert progress.advance(last=True) == "2.0 windows/s, 0:00:00 left for the shards in progress"
