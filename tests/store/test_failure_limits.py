from dataclasses import replace

import pytest

from caption_assets.settings import Settings
from caption_assets.store.failure_limits import FailureLimit, FailureLimits, Failures, TooManyFailures
from caption_assets.store.tables import CLIP_MANIFEST
from tests.report.windows import broken, captioned, failed, window

pytestmark = pytest.mark.fast

LIMIT = FailureLimit(0.1, 2, ("FRACTION", "NUMBER"))


@pytest.mark.parametrize(
    ("failures", "total", "exceeded"),
    [
        (0, 0, []),
        (0, 5, []),
        (1, 5, []),
        (2, 5, []),
        (3, 5, ["FRACTION", "NUMBER"]),
        (1, 1, ["FRACTION"]),
        (2, 2, ["FRACTION"]),
        (9, 9, ["FRACTION"]),
        (3, 30, []),
        (4, 30, ["FRACTION", "NUMBER"]),
        (10, 100, []),
        (11, 100, ["FRACTION", "NUMBER"]),
    ],
)
def test_limit_is_exceeded_past_both_values_and_if_everything_failed(
    failures: int, total: int, exceeded: list[str]
) -> None:
    assert list(LIMIT.exceeded(Failures(failures, total, ""))) == exceeded


def test_fraction_of_one_allows_that_everything_fails() -> None:
    assert not replace(LIMIT, fraction=1.0).exceeded(Failures(5, 5, ""))


def test_allowance_of_zero_leaves_the_fraction_alone() -> None:
    strict = replace(LIMIT, fraction=0.29, number=0)
    assert not strict.exceeded(Failures(29, 100, ""))
    assert strict.exceeded(Failures(30, 100, ""))


def test_clips_are_counted_in_manifests_and_readable_windows_in_captions() -> None:
    manifest = [window("a.mp4", 0), window("a.mp4", 1), broken("x.mp4"), broken("y.mp4")]
    assert Failures.of_manifest(manifest) == Failures(2, 3, f"'x.mp4': {manifest[2].error}")
    captions = [captioned(manifest[0], "A car."), failed(manifest[1]), failed(manifest[2]), failed(manifest[3])]
    assert Failures.of_captions(captions) == Failures(1, 2, f"'a.mp4', window 1: {captions[1].error}")


def test_message_names_counts_limits_first_failure_and_remedy() -> None:
    with pytest.raises(TooManyFailures) as raised:
        FailureLimits().check(CLIP_MANIFEST, Failures(3, 5, "'x.mp4': it is empty"))
    assert str(raised.value) == (
        "3 of 5 clips are unreadable, more than CAPTION_MAX_UNREADABLE_FRACTION = 0.1 and "
        "CAPTION_MAX_UNREADABLE_CLIPS = 2; the first: 'x.mp4': it is empty. The table is published and can be "
        "inspected: fix the clips or raise CAPTION_MAX_UNREADABLE_FRACTION or CAPTION_MAX_UNREADABLE_CLIPS, and "
        "materialize the shard again"
    )
    message = FailureLimits().too_many("stage1_captions", Failures(1, 1, "'x.mp4', window 0: timeout"))
    assert message is not None
    assert message.startswith(
        "1 of 1 windows of stage1_captions failed, more than CAPTION_MAX_FAILED_FRACTION = 0.05; "
    )
    assert "raise CAPTION_MAX_FAILED_FRACTION, and" in message


def test_settings_have_the_default_limits() -> None:
    assert Settings().failure_limits == FailureLimits()
    limits = Settings(max_failed_windows=7, max_unreadable_clips=8).failure_limits
    assert (limits.failed.number, limits.unreadable.number) == (7, 8)
