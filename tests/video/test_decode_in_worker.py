import numpy as np
import pytest

from caption_assets.video.decode_in_worker import DecodedWindow, decode_shared
from caption_assets.workers.sandbox import Sandbox
from caption_assets.workers.shared_memory import Buffer, ClipFile
from tests.videos import decode, moving_video

pytestmark = pytest.mark.fast


def test_worker_decodes_without_model_libraries() -> None:
    data = moving_video(8)
    clip, pixels = ClipFile(len(data)), Buffer(4 * 56 * 84 * 3)
    clip.append(data)
    with Sandbox(workers=1) as sandbox:
        job = sandbox.submit(
            decode_shared, clip.handle, pixels.handle, 0, 8, 4, (56, 84), pause_after=60, with_preview=True
        )
        assert isinstance(sandbox.result(job), DecodedWindow)
        loaded = sandbox.result(sandbox.submit(eval, "set(__import__('sys').modules)"))
    assert "av" in loaded
    assert not loaded & {"torch", "torchvision", "transformers", "vllm", "dagster"}


@pytest.mark.parametrize("turned", [0, 90, 180, 270])
def test_frames_in_the_buffer_are_those_of_the_decoder(turned: int) -> None:
    data = moving_video(8, prepare=lambda stream: stream.set_display_rotation(turned))
    size = (84, 56) if turned % 180 else (56, 84)
    clip, pixels = ClipFile(len(data)), Buffer(4 * 56 * 84 * 3)
    clip.append(data)
    decoded = decode_shared(clip.handle, pixels.handle, 0, 8, 4, size, pause_after=60)
    assert isinstance(decoded, DecodedWindow)
    found = np.frombuffer(pixels.memory, np.uint8).reshape(4, *size, 3)
    np.testing.assert_array_equal(found, decode(data, 0, 8, 4, size).pixels)
