"""The renderer of decoded frames: RGB pictures as a player shows them, upright, in square pixels and standard range."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from av import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from caption_assets.video.container import check_size
from caption_assets.video.display import UPRIGHT, Orientation, frame_orientation
from caption_assets.video.fields import first_field, is_interlaced
from caption_assets.video.matrix import YCGCO, source_matrix, ycgco_to_rgb
from caption_assets.video.primaries import WIDE_PRIMARIES, to_srgb
from caption_assets.video.scaler import Scaler, resize
from caption_assets.video.tone import is_hdr, to_sdr
from caption_assets.video.track import NO_CROP, Track

RGB = NDArray[np.uint8]
"""One picture, uint8 of shape (height, width, 3)."""
BACKGROUND_LEVEL = 128
"""Gray level, of 255, of the background of transparent pictures: both white and black shapes contrast with it."""
MAX_ASPECT_DIFFERENCE = 0.01
"""Maximum relative difference between the aspect ratios of a picture and its clip without padding: sizes and pixel
aspect ratios are rounded."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A rendered frame."""

    pixels: RGB
    padded: bool
    """Whether black bars were added because its aspect ratio differs from the clip's."""


class Renderer:
    """Renders decoded frames of one stream, all to the same size.

    Args:
        stream: the frames' stream, before any frame is decoded: afterwards it has the size of the last frame.
        track: the stream's properties from the container.
        size: height and width of the upright pictures, in pixels; None for the display size of the clip.
    """

    def __init__(self, stream: VideoStream, track: Track, size: tuple[int, int] | None) -> None:
        self._context = stream.codec_context
        self._container_aspect = stream.sample_aspect_ratio
        self._initial_codec_aspect = self._context.sample_aspect_ratio
        self._track = track
        self._is_interlaced = is_interlaced(stream)
        self._size = size
        self._coded = self._context.width, self._context.height
        self._clip: tuple[int, int] | None = None
        self._scaler = Scaler()

    def with_size(self, size: tuple[int, int] | None) -> Renderer:
        """A renderer for the same stream and another size."""
        other = copy(self)
        other._size = size
        return other

    def render(self, frame: VideoFrame) -> Picture:
        """Render a decoded frame.

        Raises:
            UnreadableClip: if its display size exceeds the limits.
        """
        orientation = frame_orientation(frame) or self._track.orientation or UPRIGHT
        clip = self._clip = self._clip or displayed_size(*self._coded, self._track, self._container_aspect, orientation)
        shown = displayed_size(frame.width, frame.height, self._track, self._aspect, orientation)
        width, height = self._size[::-1] if self._size else clip
        check_size(width, height)
        padded = abs(shown[0] * clip[1] / (shown[1] * clip[0]) - 1) > MAX_ASPECT_DIFFERENCE
        if not padded:
            return Picture(self._upright(frame, orientation, width, height), padded)
        scale = min(clip[0] / shown[0], clip[1] / shown[1])
        inner = max(round(width * shown[0] * scale / clip[0]), 1), max(round(height * shown[1] * scale / clip[1]), 1)
        pixels = np.zeros((height, width, 3), np.uint8)
        left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
        pixels[top : top + inner[1], left : left + inner[0]] = self._upright(frame, orientation, *inner)
        return Picture(pixels, padded)

    @property
    def _aspect(self) -> Fraction | None:
        """Pixel aspect ratio of the current frame: the container's or, without one, the stream's."""
        if self._container_aspect == self._initial_codec_aspect or not self._container_aspect:
            return self._context.sample_aspect_ratio
        return self._container_aspect

    def _upright(self, frame: VideoFrame, orientation: Orientation, width: int, height: int) -> RGB:
        """A frame as RGB in standard dynamic range, resized and turned upright."""
        if orientation.is_sideways:
            width, height = height, width
        lines = 1
        shown = frame
        if (frame.interlaced_frame or self._is_interlaced) and frame.height % 2 == 0:
            shown, lines = first_field(frame), 2
        kind = np.uint16 if is_hdr(frame.color_trc) else np.uint8
        # Blending and cropping precede resizing. The scaler would keep the fields of an interlaced frame apart.
        if has_alpha(frame) or self._track.crop != NO_CROP or shown.interlaced_frame:
            rows, columns = self._track.crop.slices(frame.width, frame.height)
            rows = slice(rows.start // lines, rows.stop // lines)
            whole = self._full_range(shown, frame, kind, shown.height, shown.width)
            flat = resize(whole[rows, columns], height, width)
        else:
            flat = self._full_range(shown, frame, kind, height, width)
        if is_hdr(frame.color_trc):
            flat = to_sdr(flat, frame.color_trc, frame.color_primaries)
        elif frame.color_primaries in WIDE_PRIMARIES:
            flat = to_srgb(flat, frame.color_primaries, frame.color_trc)
        return orientation.apply(flat)

    def _full_range(
        self, shown: VideoFrame, tagged: VideoFrame, kind: type[np.uint8 | np.uint16], height: int, width: int
    ) -> NDArray[Any]:
        """Full-range RGB of this size, uint8 or uint16, over the background.

        Args:
            shown: the frame, or one of its fields.
            tagged: the frame, which has the color tags.
            kind: dtype of the result.
            height: height of the result.
            width: width of the result.
        """
        deep = kind is np.uint16
        if tagged.colorspace == YCGCO and not tagged.format.is_rgb:
            rgb = ycgco_to_rgb(self._unpacked(shown, tagged, "yuv444p16le", height, width), tagged.color_range)
            return rgb if deep else np.rint(rgb / 257).astype(np.uint8)
        if not has_alpha(tagged):
            return self._unpacked(shown, tagged, "gbrp16le" if deep else "gbrp", height, width)
        pixels = self._unpacked(shown, tagged, "gbrap16le" if deep else "gbrap", height, width)
        return over_background(pixels, self._track.matte)

    def _unpacked(
        self, shown: VideoFrame, tagged: VideoFrame, pixel_format: str, height: int, width: int
    ) -> NDArray[Any]:
        matrix = None
        if tagged.format.is_rgb:
            shown.colorspace = 0  # FFmpeg refuses to convert RGB with unknown matrix coefficients
        else:
            matrix = source_matrix(tagged)
        return self._scaler.scale(shown, pixel_format, height, width, matrix)


def displayed_size(
    width: int, height: int, track: Track, pixel_aspect: Fraction | None, orientation: Orientation
) -> tuple[int, int]:
    """Display width and height of a decoded picture: cropped, with square pixels, upright."""
    width, height = track.crop.size(width, height)
    width = max(round(width * (pixel_aspect or 1)), 1)
    return (height, width) if orientation.is_sideways else (width, height)


def has_alpha(frame: VideoFrame) -> bool:
    """Whether the frame's pixel format has transparency."""
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def over_background(picture: NDArray[Any], matte: int | None) -> NDArray[Any]:
    """Blend a picture with transparency over the background.

    Args:
        picture: uint8 or uint16 of shape (height, width, 4), RGB and alpha.
        matte: see ``Track``.
    """
    maximum = np.iinfo(picture.dtype).max
    opacity = picture[..., 3:]
    if opacity.min() == maximum:
        return np.ascontiguousarray(picture[..., :3])
    share = opacity.astype(np.float32) / maximum
    colors = picture[..., :3].astype(np.float32)
    behind = (1 - share) * (BACKGROUND_LEVEL * maximum / 255)
    mixed = colors * share if matte is None else colors - (1 - share) * (matte * maximum / 255)
    return np.rint(np.clip(mixed + behind, 0, maximum)).astype(picture.dtype)
