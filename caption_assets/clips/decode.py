"""Clip bytes to the frames a model is shown: chosen by time, at the model's size."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from caption_assets.clips.container import UnreadableClip, open_video
from caption_assets.clips.probe import packet_stamps
from caption_assets.clips.sampling import frame_times

RGB = NDArray[np.uint8]
"""One picture, uint8 of shape (height, width, 3)."""


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of one window as a model will see them."""

    pixels: NDArray[np.uint8]
    """uint8 of shape (frames, height, width, 3), RGB."""
    indices: tuple[int, ...]
    """Numbers of the frames within the clip, in order of presentation."""
    fps: float
    """Frames per second of the chosen frames, not of the source: it sets the model's temporal positions."""


def decode(data: bytes, start: int, end: int, count: int, size: tuple[int, int]) -> Frames:
    """Decode ``count`` frames of the window from frame ``start`` to before frame ``end``.

    Args:
        data: the whole clip.
        start: first frame of the window, in order of presentation.
        end: one past its last frame.
        count: frames wanted, spread evenly over the window's time, its first and last frame included.
        size: height and width to resize to, in pixels.

    Raises:
        UnreadableClip: if the clip, or one of the wanted frames, cannot be decoded.
    """
    with open_video(data) as (container, stream):
        stamps = sorted(packet_stamps(container, stream))
        base = float(stream.time_base or 0)
        indices = shown_at([(stamp - stamps[0]) * base for stamp in stamps[start:end]], count)
        indices = tuple(start + index for index in indices)
    wanted = {stamps[index]: index for index in indices}
    pictures: dict[int, RGB] = {}
    converter = VideoReformatter()  # one for all: a frame's own would be built anew for each, at ten times the time
    with open_video(data) as (container, stream):
        stream.codec_context.thread_count = 1  # clips side by side beat threads within one codec
        for frame in container.decode(stream):
            if frame.pts in wanted:
                pictures[wanted[frame.pts]] = resize(rgb(frame, converter), *size)
            if len(pictures) == len(wanted):
                break
    if missing := sorted(set(indices) - pictures.keys()):
        raise UnreadableClip("damaged", f"frames {missing} of the clip cannot be decoded: the file is damaged")
    seconds = (stamps[indices[-1]] - stamps[indices[0]]) * base
    fps = (count - 1) / seconds if seconds > 0 else 1.0
    return Frames(np.stack([pictures[index] for index in indices]), indices, fps)


def shown_at(times: Sequence[float], count: int) -> tuple[int, ...]:
    """Indices of the frames on show at ``count`` evenly spaced moments from the first frame to the last.

    Args:
        times: when each frame is shown, in seconds, ascending.
        count: moments, at least 2.
    """
    slack = 1e-6  # seconds; moments fall on frame times, and rounding must not show the frame before
    moments = frame_times(times[0], times[-1], count)
    return tuple(bisect_right(times, moment + slack) - 1 for moment in moments)


def rgb(frame: VideoFrame, converter: VideoReformatter) -> RGB:
    """A decoded frame as uint8 (height, width, 3)."""
    return np.asarray(converter.reformat(frame, format="rgb24", threads=1).to_ndarray(), dtype=np.uint8)


def resize(frame: RGB, height: int, width: int) -> RGB:
    """One RGB frame, uint8 (H, W, 3), to uint8 (``height``, ``width``, 3), bicubic with antialiasing.

    It stays in uint8: float frames would cost four times the memory and the copying, for at most a few levels.
    """
    import torch  # not above: definitions and listings load this module where there is no torch

    pixels = torch.from_numpy(frame).permute(2, 0, 1).unsqueeze(0)
    scaled = torch.nn.functional.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)
    return np.asarray(scaled.squeeze(0).permute(1, 2, 0).contiguous())
