"""The audio of a window: decoded, cut at the sample, and encoded as AAC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from numpy.typing import NDArray

from caption_assets.video.container import FFMPEG_ERRORS, open_video

RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000})
"""Sampling rates of AAC; audio at another one is resampled to ``DEFAULT_RATE``."""
DEFAULT_RATE = 48000
GAP_SECONDS = 0.05
"""Minimum gap between audio frames that is filled with silence; smaller ones are rounded timestamps."""
Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class AudioCut:
    """A part of a clip's first audio track.

    Args:
        open_file: opens the clip's file for this cut alone.
        start: first second, on the container's clock.
        seconds: duration.
    """

    open_file: Callable[[], BinaryIO]
    start: float
    seconds: float

    def write(self, output: OutputContainer) -> None:
        """Encode it into an output that has no packet yet; nothing if there is no audio in that time."""
        with self.open_file() as file, open_video(file) as (container, _):
            if not container.streams.audio:
                return
            source = container.streams.audio[0]
            if cast(Any, source.codec_context) is None:  # FFmpeg has no decoder for it
                return
            rate = source.codec_context.sample_rate
            rate = rate if rate in RATES else DEFAULT_RATE
            layout = "mono" if source.codec_context.channels == 1 else "stereo"
            parts = self._parts(container, source, rate, layout)
            first = next(parts, None)
            if first is None:
                return
            stream = output.add_stream("aac", rate=rate, layout=layout)
            written = 0
            for part in (first, *parts):
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format="fltp", layout=layout)
                frame.sample_rate, frame.pts, frame.time_base = rate, written, Fraction(1, rate)
                written += part.shape[1]
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))

    def _parts(self, container: InputContainer, source: AudioStream, rate: int, layout: str) -> Iterator[Samples]:
        """Its samples, float of shape (channels, samples), with silence for gaps."""
        total, written = round(self.seconds * rate), 0
        resampler = av.AudioResampler("fltp", layout, rate)
        for frame in self._frames(container, source):
            if frame.time is None:
                continue
            at = round((frame.time - self.start) * rate)
            if at >= total:
                break
            samples = np.concatenate([one.to_ndarray() for one in resampler.resample(frame)], axis=1)
            if at < written:
                samples = (
                    samples[:, written - at :] if abs(at - written) > GAP_SECONDS * rate or not written else samples
                )
            elif at - written > GAP_SECONDS * rate or not written:
                silence = np.zeros((samples.shape[0], at - written), np.float32)
                samples = np.concatenate([silence, samples], axis=1)
            samples = samples[:, : total - written]
            if samples.shape[1]:
                written += samples.shape[1]
                yield samples

    def _frames(self, container: InputContainer, source: AudioStream) -> Iterator[Any]:
        base = cast(Fraction, source.time_base)
        with suppress(*FFMPEG_ERRORS):  # otherwise it is read from its beginning
            container.seek(max(int((self.start - 1) / base), 0), stream=source)
        for packet in container.demux(source):
            try:
                yield from packet.decode()
            except FFMPEG_ERRORS:
                continue  # the damaged packet becomes silence
