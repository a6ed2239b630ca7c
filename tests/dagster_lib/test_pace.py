import pytest

from caption_assets.dagster_lib.pace import Pace

pytestmark = pytest.mark.fast


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is, to be set."""
    now = [100.0]
    monkeypatch.setattr("caption_assets.dagster_lib.pace.time.monotonic", lambda: now[0])
    return now


def test_rate_and_time_left_are_told_every_few_seconds(clock: list[float]) -> None:
    pace = Pace()
    pace.expect(41)
    words = []
    clock[0] += 60  # the engine starts: no part of the rate
    for _ in range(21):
        words.append(pace.tell(last=False))
        clock[0] += 1
    pace.close()
    told = [word for word in words if word]
    assert told[0] == "the first of this run"
    assert told[1:] == [
        "1.0 windows/s, 0:00:30 left for the shards under way",
        "1.0 windows/s, 0:00:20 left for the shards under way",
    ]


def test_the_end_of_a_shard_is_always_told(clock: list[float]) -> None:
    pace = Pace()
    pace.expect(2)
    assert pace.tell(last=False) is None
    clock[0] += 0.5
    assert pace.tell(last=True) == "2.0 windows/s, 0:00:00 left for the shards under way"
    pace.close()
