"""Small real video files for tests."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from fractions import Fraction
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream
from numpy.typing import NDArray

from caption_assets.video.container import open_video
from caption_assets.video.decode import ClipDecoder, Frames

RGB = NDArray[np.uint8]


def decode(data: bytes, start: int, end: int, count: int, size: tuple[int, int] | None) -> Frames:
    """Decode one window of a clip, as ``ClipDecoder.frames`` does."""
    with closing(ClipDecoder(partial(BytesIO, data))) as decoder:
        return decoder.frames(start, end, count, size)


def video(
    pictures: Iterable[RGB],
    *,
    encoder: str = "libx264",
    container: str = "mp4",
    fps: int = 25,
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] = MappingProxyType({}),
    muxer: Mapping[str, str] = MappingProxyType({}),
    timestamps: Sequence[int] | None = None,
    prepare: Callable[[VideoStream], None] = lambda stream: None,
) -> bytes:
    """Encode pictures as a video file.

    Args:
        pictures: uint8 RGB of shape (height, width, 3), all of the same size.
        encoder: FFmpeg's name of the encoder.
        container: FFmpeg's name of the muxer.
        fps: frames per second, and the time base of ``timestamps``.
        pix_fmt: FFmpeg's name of the pixel format.
        options: options of the encoder.
        muxer: options of the muxer.
        timestamps: presentation timestamps in units of 1/fps seconds; by default 0, 1, 2, …
        prepare: called with the stream before the first picture.
    """
    file = BytesIO()
    frames = [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures]
    with av.open(file, "w", format=container, container_options=dict(muxer)) as output:
        stream = cast(VideoStream, output.add_stream(encoder, rate=fps, options=dict(options)))
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, fps)
        prepare(stream)
        for index, frame in enumerate(frames):
            frame.pts = timestamps[index] if timestamps else index
            frame.time_base = Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def moving_video(frames: int, size: tuple[int, int] = (96, 64), **options: Any) -> bytes:
    """A video file of ``moving`` pictures. Further keywords are those of ``video``."""
    return video(moving(frames, size), **options)


def moving(frames: int, size: tuple[int, int]) -> Iterator[RGB]:
    """Pictures of shape (height, width, 3) of a moving, grainy texture, which inter prediction compresses badly."""
    rng = np.random.default_rng(0)
    width, height = size
    texture = rng.integers(40, 200, (height + frames, width + frames, 3), dtype=np.uint8)
    for index in range(frames):
        grain = rng.integers(0, 40, (height, width, 3), dtype=np.uint8)
        yield texture[index // 2 : index // 2 + height, index : index + width] + grain


def counting_video(
    frames: int,
    *,
    fps: int = 25,
    size: tuple[int, int] = (64, 48),
    timestamps: Sequence[int] | None = None,
) -> bytes:
    """An H.264 file whose frame ``n`` has the gray level ``level(n)``.

    Args:
        frames: number of frames.
        fps: frames per second, and the time base of ``timestamps``.
        size: width and height.
        timestamps: presentation timestamps in units of 1/fps seconds; by default 0, 1, 2, …
    """
    pictures = (gray(level(index), size) for index in range(frames))
    return video(pictures, fps=fps, options={"crf": "10", "bf": "2"}, timestamps=timestamps)


SHORT_GROUPS = "keyint=12:min-keyint=12:scenecut=0:bframes=3:threads=1"
"""x264 options for groups of 12 pictures, so that a short clip has several groups."""
HEVC = "keyint=12:min-keyint=12:scenecut=0:bframes=4:log-level=none"
MPEG = {"bf": "2", "g": "12", "b": "3000000"}
VP9 = {"deadline": "realtime", "cpu-used": "8", "g": "12"}

VIDEO_KINDS: dict[str, dict[str, Any]] = {
    "h264": {"options": {"x264-params": SHORT_GROUPS}},
    "h264 open groups": {"options": {"x264-params": f"{SHORT_GROUPS}:open-gop=1:b-pyramid=normal"}},
    "h264 one group": {"options": {"x264-params": "bframes=3:threads=1"}},
    "h264 gradual refresh": {"options": {"x264-params": "keyint=12:intra-refresh=1:bframes=2:threads=1"}},
    "h264 fragmented": {
        "options": {"x264-params": SHORT_GROUPS},
        "muxer": {"movflags": "frag_keyframe+empty_moov"},
    },
    "h264 transport stream": {"options": {"x264-params": f"{SHORT_GROUPS}:open-gop=1"}, "container": "mpegts"},
    "h264 edit list": {
        "options": {"x264-params": SHORT_GROUPS},
        "timestamps": range(-7, 41),  # players skip the frames before 0
        "muxer": {"avoid_negative_ts": "disabled"},
    },
    "h264 variable rate": {
        "options": {"x264-params": SHORT_GROUPS},
        "timestamps": [index**2 for index in range(48)],
    },
    "h264 4:4:4": {"options": {"x264-params": SHORT_GROUPS}, "pix_fmt": "yuv444p"},
    "h264 10 bits": {"options": {"x264-params": SHORT_GROUPS}, "pix_fmt": "yuv420p10le"},
    "h264 interlaced": {"options": {"x264-params": f"{SHORT_GROUPS}:tff=1"}},
    "h264 one frame": {"frames": 1},
    "hevc": {"encoder": "libx265", "options": {"x265-params": f"{HEVC}:open-gop=0"}},
    "hevc open groups": {"encoder": "libx265", "options": {"x265-params": f"{HEVC}:open-gop=1"}},
    "hevc 10 bits": {
        "encoder": "libx265",
        "options": {"x265-params": f"{HEVC}:open-gop=1"},
        "pix_fmt": "yuv420p10le",
    },
    "mpeg2": {"encoder": "mpeg2video", "options": MPEG, "container": "mpeg"},
    "mpeg2 transport stream": {"encoder": "mpeg2video", "options": MPEG, "container": "mpegts"},
    "mpeg4": {"encoder": "mpeg4", "options": MPEG},
    "mpeg4 avi, odd": {"encoder": "mpeg4", "options": MPEG, "container": "avi", "size": (97, 65)},
    "vp8": {"encoder": "libvpx", "options": {**VP9, "b": "500000"}, "container": "webm"},
    "vp9": {"encoder": "libvpx-vp9", "options": VP9, "container": "webm"},
    "vp9 odd": {"encoder": "libvpx-vp9", "options": VP9, "size": (97, 65)},
    "vp9 hidden frames": {
        "encoder": "libvpx-vp9",
        "options": {"deadline": "good", "cpu-used": "5", "g": "24", "auto-alt-ref": "1", "lag-in-frames": "16"},
        "container": "matroska",
    },
    "av1": {"encoder": "libsvtav1", "options": {"preset": "10", "g": "12"}},
    "av1 one group": {"encoder": "libsvtav1", "options": {"preset": "10"}, "container": "webm"},
    "mjpeg": {"encoder": "mjpeg", "container": "avi", "pix_fmt": "yuvj420p"},
    "prores": {"encoder": "prores_ks", "container": "mov", "pix_fmt": "yuv422p10le"},
    "gif": {"encoder": "gif", "container": "gif", "pix_fmt": "rgb8", "fps": 10},
}
"""Keywords of ``moving_video`` for each kind of video. The default is 48 frames of 96x64."""


@cache
def video_of_kind(name: str) -> bytes:
    """A video of one of ``VIDEO_KINDS``, encoded once per session."""
    return moving_video(**{"frames": 48, **VIDEO_KINDS[name]})


@cache
def video_that_grows() -> bytes:
    """A transport stream of 24 pictures of 64x48, followed by 24 of 96x64."""
    options: dict[str, Any] = {"container": "mpegts", "options": {"x264-params": SHORT_GROUPS}}
    small = moving_video(24, size=(64, 48), **options)
    # The second part begins at 26, since its first DTS is 2 before its first PTS.
    return small + moving_video(24, size=(96, 64), timestamps=range(26, 50), **options)


def video_with_restarting_timestamps(container: str = "mpegts") -> bytes:
    """Two concatenated recordings with the same timestamps."""
    options = VIDEO_KINDS["h264 transport stream" if container == "mpegts" else "mpeg2"]
    return moving_video(48, **options) + video(list(moving(48, (96, 64)))[::-1], **options)


def video_with_missing_timestamps(bframes: int = 0) -> bytes:
    """A program stream in which half of the frames have no timestamp, since a packet contains several frames."""
    params = f"keyint=12:min-keyint=12:scenecut=0:bframes={bframes}:threads=1"
    return moving_video(48, container="mpeg", options={"x264-params": params})


def video_with_changing_parameter_sets(container: str) -> bytes:
    """Two takes of 48 frames with different parameter sets, which are stored once at the beginning of each take."""
    takes = [_take(container, quality) for quality in (20, 40)]
    return _flash(takes) if container == "flv" else _transport_stream(takes)


def video_with_parameter_sets_in_samples(container: str) -> bytes:
    """The same takes with the first take's parameter sets in the header and the second's in a sample, as with avc3."""
    file = BytesIO()
    takes = BytesIO(video_with_changing_parameter_sets("mpegts"))
    with av.open(takes, "r") as source, av.open(file, "w", format=container) as output:
        given = source.streams.video[0]
        stream = output.add_stream_from_template(given)
        for packet in source.demux(given):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    return file.getvalue()


def _flash(takes: Sequence[bytes]) -> bytes:
    """A Flash Video file of takes. Parameter sets have tags of their own, which FFmpeg returns with the next packet."""
    tags = [tag for tag in _tags(takes[0]) if tag[2][:2] != b"\x17\x02"]  # without the end-of-sequence tag
    tags += [(kind, time + 1920, body) for kind, time, body in _tags(takes[1]) if kind == 9]
    return takes[0][:13] + b"".join(_tag(*tag) for tag in tags)  # the header has 9 bytes, and a tag's length follows


def _transport_stream(takes: Sequence[bytes]) -> bytes:
    """A transport stream of takes, with parameter sets only before the first frame of each take."""
    file = BytesIO()
    with av.open(file, "w", format="mpegts") as output:
        stream: VideoStream | None = None
        for number, take in enumerate(takes):
            with open_video(take) as (source, given):
                if stream is None:
                    stream = output.add_stream_from_template(given)
                    stream.codec_context.extradata = None  # the muxer would insert it before each keyframe
                remove_sets = av.BitStreamFilterContext("filter_units=remove_types=7-8", given)
                for index, packet in enumerate(source.demux(given)):
                    for kept in remove_sets.filter(packet) if index and packet.size else [packet]:
                        if kept.size:
                            kept.pts = kept.dts = (number * 48 + index) * 3600
                            kept.stream = stream
                            output.mux(kept)
    return file.getvalue()


def _take(container: str, quality: int) -> bytes:
    params = f"keyint=12:min-keyint=12:scenecut=0:bframes=0:threads=1:cabac=0:ipratio=1:qp={quality}"
    return moving_video(48, container=container, options={"x264-params": params})


def _tags(flash: bytes) -> list[tuple[int, int, bytes]]:
    """The tags of a Flash Video file: kind, time in milliseconds, and content."""
    tags, at = [], 13
    while at + 11 <= len(flash):
        size, time = int.from_bytes(flash[at + 1 : at + 4]), int.from_bytes(flash[at + 4 : at + 7])
        tags.append((flash[at], time, flash[at + 11 : at + 11 + size]))
        at += 11 + size + 4
    return tags


def _tag(kind: int, time: int, body: bytes) -> bytes:
    """A Flash Video tag, followed by its length."""
    head = bytes([kind]) + len(body).to_bytes(3) + time.to_bytes(3) + bytes(4)
    return head + body + (len(head) + len(body)).to_bytes(4)


def video_without_sync_table() -> bytes:
    """An MP4 file without a table of keyframes, so that every frame counts as a keyframe."""
    return video_of_kind("h264").replace(b"stss", b"free")


def video_cut_within_a_group() -> bytes:
    """A transport stream that begins within a group: its first frames refer to missing ones."""
    data = video_of_kind("h264 transport stream")
    return data[len(data) // 188 // 8 * 188 :]


def video_cut_at_an_open_group() -> bytes:
    """A transport stream that begins at an open group: its leading pictures refer to missing ones."""
    data = video_of_kind("h264 transport stream")
    with open_video(data) as (container, stream):
        keys = [packet.pos for packet in container.demux(stream) if packet.is_keyframe and packet.pos is not None]
    return data[keys[1] - 2 * 188 :]  # two packets of tables precede the keyframe


def with_display_matrix(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 file with another display matrix (ISO/IEC 14496-12, 8.3.2) in its first track header, of version 0."""
    at = data.index(b"tkhd") + 4 + 40
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return data[:at] + matrix + data[at + 36 :]


def level(index: int) -> int:
    """The gray level of a counting video's frame. Neighbors differ enough to survive compression."""
    return 30 + (index * 37) % 200


def gray(value: int, size: tuple[int, int]) -> RGB:
    """A uniform picture of shape (height, width, 3)."""
    return np.full((size[1], size[0], 3), value, dtype=np.uint8)


def hdr_video(signal: NDArray[np.uint16], transfer: ColorTrc, frames: int = 4) -> bytes:
    """A 10-bit HEVC video in BT.2020 of one picture, full-range uint16 RGB of shape (height, width, 3)."""
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        options = {"x265-params": "log-level=none", "crf": "4"}
        stream = container.add_stream("libx265", rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *signal.shape[:2], "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries = transfer, ColorPrimaries.BT2020
        context.colorspace, context.color_range = Colorspace.BT2020, ColorRange.MPEG
        for index in range(frames):
            rgb = av.VideoFrame.from_ndarray(signal, format="rgb48le")
            frame = rgb.reformat(
                format="yuv420p10le", dst_colorspace=Colorspace.BT2020, dst_color_range=ColorRange.MPEG
            )
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def slow_video() -> bytes:
    """A GIF of 7 MB that takes a minute to decode: 501 pictures of 4,096x4,096 pixels, each painted over the last."""
    size = 4096, 4096
    two = video((gray(value, size) for value in (0, 255)), fps=10, encoder="gif", container="gif", pix_fmt="rgb8")
    second = two.rindex(b"\x21\xf9\x04")  # the extension before each picture
    return two[:second] + 500 * two[second:-1] + two[-1:]


def audio_only() -> bytes:
    """An MP4 file with audio and without video."""
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16_000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    return file.getvalue()


def noise_video(
    codec: str = "libx264",
    *,
    container: str = "mp4",
    frames: int = 50,
    size: tuple[int, int] = (160, 120),
    pixel_format: str = "yuv420p",
    timestamps: Sequence[int] | None = None,
    sound: bool = True,
    rotation: int = 0,
    pixel_aspect: Fraction | None = None,
    movflags: str = "",
    **options: str,
) -> bytes:
    """A video of moving noise at 25 frames per second, which compresses badly.

    Args:
        codec: FFmpeg's name of the encoder.
        container: FFmpeg's name of the muxer.
        frames: number of frames.
        size: width and height.
        pixel_format: FFmpeg's name of the pixel format.
        timestamps: presentation timestamps in units of 1/25 s; by default 0, 1, 2, …
        sound: whether to interleave an AAC track.
        rotation: display rotation, in degrees counterclockwise.
        pixel_aspect: pixel aspect ratio.
        movflags: flags of FFmpeg's MP4 muxer; ``faststart`` stores the index first.
        options: options of the encoder.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "video"  # a real file, since with faststart the muxer opens it a second time
        flags = {"movflags": movflags} if movflags else {}
        with av.open(str(path), "w", format=container, options=flags) as output:
            stream = cast(VideoStream, output.add_stream(codec, rate=25, options=options))
            stream.width, stream.height = size
            stream.pix_fmt = pixel_format
            stream.codec_context.time_base = Fraction(1, 25)
            stream.codec_context.thread_count = 1
            if pixel_aspect:
                stream.codec_context.sample_aspect_ratio = pixel_aspect
            if rotation:
                stream.set_display_rotation(rotation)
            track = output.add_stream("aac", rate=16_000) if sound else None
            noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            for index in range(frames):
                picture = av.VideoFrame.from_ndarray(np.roll(noise, 3 * index, axis=1), format="rgb24")
                picture.pts, picture.time_base = timestamps[index] if timestamps else index, Fraction(1, 25)
                output.mux(stream.encode(picture))
                if track:
                    output.mux(track.encode(tone(index)))
            output.mux(stream.encode(None))
            if track:
                output.mux(track.encode(None))
        return path.read_bytes()


def tone(index: int) -> av.AudioFrame:
    """1/25 second of audio that depends on ``index``."""
    wave = np.sin(np.arange(640, dtype=np.float32) * (index + 1) / 9)[None] / 2
    frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 16_000, 640 * index, Fraction(1, 16_000)
    return frame
