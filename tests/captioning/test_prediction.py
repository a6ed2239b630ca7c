from dataclasses import replace

import pytest

from caption_assets.captioning.prediction import predicted_tokens
from caption_assets.models.variants import QWEN3, QWEN25, Variant
from caption_assets.store.tables import ManifestRow, Status
from caption_assets.video.frame_sampling import FrameSampling

pytestmark = pytest.mark.fast

WINDOW = ManifestRow(
    "a.mp4",
    0,
    "id",
    "tag",
    10,
    Status.OK,
    width=1280,
    height=720,
    start_frame=0,
    end_frame=250,
    start_seconds=0.0,
    end_seconds=10.0,
)


@pytest.mark.parametrize("variant", [QWEN25, QWEN3])
def test_a_window_takes_a_token_for_each_square_of_each_pair_of_its_frames(variant: Variant) -> None:
    tokens = predicted_tokens(WINDOW, variant, FrameSampling())
    assert tokens % 10 == 0  # ten pairs of frames
    assert 0.8 * 768 < tokens / 10 <= 768


def test_denser_sampling_takes_more_up_to_the_models_limit() -> None:
    one, two, many = (predicted_tokens(WINDOW, QWEN25, FrameSampling(fps=fps)) for fps in (1.0, 2.0, 25.0))
    assert two == 2 * one
    assert 0.9 * 24576 // 2 < many <= 24576 // 2


def test_what_will_not_be_shown_takes_nothing() -> None:
    failed = ManifestRow("a.mp4", None, "id", "tag", 10, Status.FAILED, error_kind="damaged", error="it is")
    assert predicted_tokens(failed, QWEN25, FrameSampling()) == 0
    assert predicted_tokens(replace(WINDOW, width=4, height=4000), QWEN25, FrameSampling()) == 0
