"""Tests of rendering: files that other projects decode wrongly, and colors by the equations of the standards."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream
from numpy.typing import NDArray

from caption_assets.errors import UnreadableClip
from caption_assets.store.span import Span
from caption_assets.store.span_file import SpanFile
from caption_assets.video.container import open_video
from caption_assets.video.decode import Frames
from caption_assets.video.picture import BACKGROUND_LEVEL, RGB, Renderer
from caption_assets.video.primaries import to_srgb
from caption_assets.video.probe import Probe, probe, probe_by_ranges
from caption_assets.video.scaler import Scaler
from caption_assets.video.track import DEFAULT_TRACK
from tests.videos import decode, gray, moving_video, video, with_display_matrix

pytestmark = pytest.mark.fast

CASES = Path(__file__).parent / "cases"
PATCHES = [(180, 40, 40), (40, 150, 60), (50, 80, 180), (150, 150, 40), (120, 50, 150), (60, 150, 150), (128, 128, 128)]
PATCHES += [(0, 0, 0), (187, 120, 60), (20, 20, 60), (90, 20, 20), (100, 140, 100)]
"""sRGB colors of the twelve patches in the test files, in three rows."""


def case(name: str) -> bytes:
    return (CASES / name).read_bytes()


def probed(name: str) -> Probe:
    """The probe of a test file, after a check that the probe by ranges equals that of the whole file."""
    data = case(name)
    found = probe_by_ranges(SpanFile(Span(f"file://{CASES / name}", 0, len(data))))
    assert found == probe(data)
    return found


def frames_of(name: str, count: int = 4) -> Frames:
    return decode(case(name), 0, probed(name).frames, count, None)


def patches(picture: RGB, rows: int = 3, columns: int = 4) -> list[list[int]]:
    """The colors at the centers of a grid of patches."""
    height, width = picture.shape[:2]
    return [
        picture[height * (2 * row + 1) // (2 * rows), width * (2 * column + 1) // (2 * columns)].tolist()
        for row in range(rows)
        for column in range(columns)
    ]


def max_difference(found: list[list[int]], expected: Sequence[tuple[int, ...]]) -> int:
    return int(np.abs(np.array(found) - np.array(expected)).max())


def test_first_of_two_default_tracks_is_shown() -> None:
    found = probed("2v_abf.mp4")
    assert (found.width, found.height, found.frames, round(found.fps)) == (640, 360, 180, 30)
    assert frames_of("2v_abf.mp4").pixels.shape == (4, 360, 640, 3)


@pytest.mark.parametrize("name", ["port_nokey.mkv", "port_nokey_frag.mp4"])
def test_clip_that_begins_between_keyframes_is_rotated(name: str) -> None:
    found = probed(name)
    assert (found.width, found.height, found.rotation) == (180, 320, 90)
    assert frames_of(name).pixels.shape == (4, 320, 180, 3)


@pytest.mark.parametrize("name", ["crop.mkv", "clap.mp4"])
def test_crop_of_the_container_is_applied(name: str) -> None:
    found = probed(name)
    assert (found.width, found.height) == (320, 160)
    pixels = frames_of(name).pixels
    with open_video(case(name)) as (container, stream):
        whole = Scaler().scale(next(container.decode(stream)), "gbrp", 240, 320, Colorspace.ITU601)
    assert np.array_equal(pixels[0], whole[40:200])


def test_pictures_that_rotate_within_a_clip_are_padded() -> None:
    frames = frames_of("turn.webm", 8)
    assert frames.pixels.shape == (8, 180, 320, 3)
    assert frames.padded == 4
    upright = frames.pixels[-1]
    width = round(180 * 180 / 320)
    left = (320 - width) // 2
    assert not upright[:, :left].any()
    assert not upright[:, left + width :].any()
    assert upright[:, left : left + width].mean() > 50


@pytest.mark.parametrize("name", ["s_2020prim.mp4", "s_p3prim.mp4", "h_pq_709prim.mp4", "h_pq_p3.mp4"])
def test_wide_gamut_colors_are_converted_to_bt709(name: str) -> None:
    assert max_difference(patches(frames_of(name).pixels[0]), PATCHES) <= 3


def test_untagged_pictures_of_720_lines_are_bt709() -> None:
    found = patches(frames_of("c_untag_hd709.mp4").pixels[0])
    assert max_difference(found[:2], [(220, 40, 40), (40, 180, 60)]) <= 3


@pytest.mark.parametrize("name", ["alpha_prores.mov", "alpha_qtrle.mov", "alpha_vp9.webm"])
def test_transparent_pictures_are_composited_on_the_background(name: str) -> None:
    [first, *_] = frames_of(name).pixels
    assert set(map(tuple, first.reshape(-1, 3)[:10].tolist())) == {(BACKGROUND_LEVEL,) * 3}
    is_green = (first[..., 1] > 240) & (first[..., 0] < 10)
    is_plain = (first == BACKGROUND_LEVEL).all(axis=-1)
    assert 0.05 < is_green.mean() < 0.95
    assert (is_green | is_plain).mean() > 0.97


@pytest.mark.parametrize(("name", "size"), [("x.mts", (320, 240)), ("x.3gp", (176, 144))])
def test_files_of_camcorders_and_phones_are_decoded(name: str, size: tuple[int, int]) -> None:
    found = probed(name)
    assert (found.width, found.height) == size
    assert frames_of(name).pixels.shape == (4, size[1], size[0], 3)


LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
"""Kr and Kb of BT.709, FCC, BT.601, SMPTE 240M and BT.2020 (ITU-T H.273, table 4)."""
COLORS = [(180, 40, 40), (40, 150, 60), (50, 80, 180), (128, 128, 128), (250, 240, 30), (10, 220, 230)]


def coded(rgb: tuple[int, int, int], matrix: int, bits: int, *, full: bool) -> list[int]:
    """Luma and color differences of 8-bit R'G'B' levels (ITU-T H.273, equations 20 to 39 and 60 to 62)."""
    r, g, b = (level / 255 for level in rgb)
    if matrix == 8:
        y, u, v = g / 2 + (r + b) / 4, g / 2 - (r + b) / 4, (r - b) / 2
    else:
        kr, kb = LUMA[matrix]
        y = kr * r + (1 - kr - kb) * g + kb * b
        u, v = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    middle, scale = 1 << bits - 1, 1 << bits - 8
    if full:
        maximum = (1 << bits) - 1
        return [round(maximum * y), round(maximum * u) + middle, round(maximum * v) + middle]
    return [round(scale * (16 + 219 * y)), round(scale * 224 * u) + middle, round(scale * 224 * v) + middle]


def flat_frame(name: str, levels: list[int], size: tuple[int, int] = (64, 48)) -> av.VideoFrame:
    """A frame of one color, given the levels of its planes."""
    frame = av.VideoFrame(*size, name)
    for plane, level in zip(frame.planes, levels, strict=True):
        np.frombuffer(plane, np.uint16 if frame.format.components[0].bits > 8 else np.uint8)[:] = level  # type: ignore[call-overload]
    return frame


@pytest.fixture(scope="module")
def renderer() -> Iterator[Callable[[av.VideoFrame], RGB]]:
    with open_video(moving_video(2)) as (_, stream):

        def render(frame: av.VideoFrame) -> RGB:
            return Renderer(stream, DEFAULT_TRACK, (frame.height, frame.width)).render(frame).pixels

        yield render


FORMATS = [("yuv420p", 8), ("yuv422p", 8), ("yuv444p", 8), ("yuv420p10le", 10), ("yuv444p12le", 12)]


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(("name", "bits"), FORMATS)
@pytest.mark.parametrize("matrix", [1, 4, 6, 7, 8, 9])
def test_colors_of_every_matrix_and_range_follow_the_standard(
    renderer: Callable[[av.VideoFrame], RGB], matrix: int, name: str, bits: int, full: bool
) -> None:
    for rgb in COLORS:
        frame = flat_frame(name, coded(rgb, matrix, bits, full=full))
        frame.colorspace = matrix
        frame.color_range = ColorRange.JPEG if full else ColorRange.MPEG
        assert max_difference([renderer(frame)[24, 32].tolist()], [rgb]) <= 3


@pytest.mark.parametrize(
    ("size", "matrix"), [((704, 576), 6), ((960, 540), 6), ((1280, 534), 1), ((960, 720), 1), ((720, 1280), 1)]
)
def test_untagged_colors_are_decoded_as_players_do(
    renderer: Callable[[av.VideoFrame], RGB], size: tuple[int, int], matrix: int
) -> None:
    frame = flat_frame("yuv420p", coded((180, 40, 40), matrix, 8, full=False), size)
    assert max_difference([renderer(frame)[size[1] // 2, size[0] // 2].tolist()], [(180, 40, 40)]) <= 3


@pytest.mark.parametrize("colorspace", [0, 1, 2, 3, 8])
def test_rgb_is_unchanged(renderer: Callable[[av.VideoFrame], RGB], colorspace: int) -> None:
    frame = flat_frame("gbrp", [150, 60, 40])
    frame.colorspace = colorspace
    assert renderer(frame)[24, 32].tolist() == [40, 150, 60]


@pytest.mark.parametrize("code", [10, 11, 13, 14])
def test_unsupported_matrix_coefficients_are_refused(code: int) -> None:
    data = video([gray(90, (64, 48))] * 4, prepare=lambda stream: setattr(stream.codec_context, "colorspace", code))
    for read in (lambda: probe(data), lambda: decode(data, 0, 4, 2, None)):
        with pytest.raises(UnreadableClip) as refused:
            read()
        assert refused.value.kind == "unknown_colours"


def chromaticities(*points: tuple[float, float]) -> NDArray[Any]:
    """The matrix from linear RGB to XYZ, given x and y of red, green, blue and white (SMPTE RP 177)."""
    *colors, white = ([x / y, 1, (1 - x - y) / y] for x, y in points)
    columns = np.array(colors).T
    return columns * np.linalg.solve(columns, np.array(white))


D65 = (0.3127, 0.3290)
BT709 = chromaticities((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65)
WIDE = {
    ColorPrimaries.BT2020: chromaticities((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),  # ITU-R BT.2020
    ColorPrimaries.SMPTE432: chromaticities((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),  # SMPTE EG 432-1
}


@pytest.mark.parametrize("primaries", WIDE)
@pytest.mark.parametrize("transfer", [ColorTrc.BT709, ColorTrc.BT2020_10, ColorTrc.UNSPECIFIED, ColorTrc.IEC61966_2_1])
def test_conversion_to_srgb_preserves_light(primaries: ColorPrimaries, transfer: ColorTrc) -> None:
    colors = np.array(COLORS[:4]) / 255
    light = ((colors + 0.055) / 1.055) ** 2.4  # IEC 61966-2-1
    wide = light @ (np.linalg.inv(WIDE[primaries]) @ BT709).T
    is_srgb = transfer == ColorTrc.IEC61966_2_1
    signal = 1.055 * wide ** (1 / 2.4) - 0.055 if is_srgb else wide ** (1 / 2.4)  # ITU-R BT.1886
    shown = to_srgb(np.rint(255 * signal).astype(np.uint8)[None], primaries, transfer)
    assert max_difference(shown[0].tolist(), COLORS[:4]) <= 3


def test_all_eight_orientations_of_the_container_are_applied(tmp_path: Path) -> None:
    quarter_white = np.zeros((48, 96, 3), np.uint8)
    quarter_white[:24, :48] = 255  # top left
    plain = video([quarter_white] * 4)
    corners = {
        (1, 0, 0, 1): (0, 0),
        (0, 1, -1, 0): (0, 1),
        (-1, 0, 0, -1): (1, 1),
        (0, -1, 1, 0): (1, 0),
        (-1, 0, 0, 1): (0, 1),
        (1, 0, 0, -1): (1, 0),
        (0, 1, 1, 0): (0, 0),
        (0, -1, -1, 0): (1, 1),
    }
    for matrix, corner in corners.items():
        data = with_display_matrix(plain, *matrix)
        (tmp_path / "clip").write_bytes(data)
        found = probe_by_ranges(SpanFile(Span(f"file://{tmp_path}/clip", 0, len(data))))
        picture = decode(data, 0, 4, 2, None).pixels[0]
        height, width = picture.shape[:2]
        assert (found.height, found.width) == (height, width)
        assert found == probe(data)
        rows = (slice(0, height // 2), slice(height // 2, height))
        columns = (slice(0, width // 2), slice(width // 2, width))
        assert picture[rows[corner[0]], columns[corner[1]]].mean() > 200
        assert picture.mean() < 80


def square() -> NDArray[np.uint8]:
    """Four uint8 RGBA pictures of a green square, half of it half transparent, on a transparent background."""
    drawn = np.zeros((4, 64, 96, 4), np.uint8)
    drawn[:, 16:48, 24:72] = (40, 150, 60, 255)
    drawn[:, 16:48, 48:72, 3] = 128
    return drawn


ALPHA: dict[str, dict[str, Any]] = {
    "png": {"encoder": "png", "container": "mov", "pix_fmt": "rgba"},
    "apng": {"encoder": "apng", "container": "apng", "pix_fmt": "rgba"},
    "qtrle": {"encoder": "qtrle", "container": "mov", "pix_fmt": "argb"},
    "ffv1": {"encoder": "ffv1", "container": "matroska", "pix_fmt": "yuva444p"},
    "prores": {"encoder": "prores_ks", "container": "mov", "pix_fmt": "yuva444p10le", "options": {"profile": "4444"}},
    "utvideo": {"encoder": "utvideo", "container": "avi", "pix_fmt": "gbrap"},
    "vp8": {"encoder": "libvpx", "container": "webm", "pix_fmt": "yuva420p", "options": {"auto-alt-ref": "0"}},
    "vp9": {"encoder": "libvpx-vp9", "container": "webm", "pix_fmt": "yuva420p"},
    "vp9 in matroska": {"encoder": "libvpx-vp9", "container": "matroska", "pix_fmt": "yuva420p"},
}


@pytest.mark.parametrize("name", ALPHA)
def test_transparent_pictures_of_every_codec_are_composited_on_the_background(name: str) -> None:
    how: dict[str, Any] = {"options": {}, **ALPHA[name]}
    if name.startswith("vp"):
        how["options"] = {**how["options"], "b": "4M", "crf": "4"}
    drawn = square()
    file = io.BytesIO()
    with av.open(file, "w", format=how["container"]) as output:
        stream = cast(VideoStream, output.add_stream(how["encoder"], rate=10, options=how["options"]))
        stream.width, stream.height, stream.pix_fmt = 96, 64, how["pix_fmt"]
        for index, picture in enumerate(drawn):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    shown = decode(file.getvalue(), 0, 4, 2, None).pixels[0]
    half = tuple(round((level + BACKGROUND_LEVEL) / 2) for level in (40, 150, 60))
    assert max_difference([shown[5, 5].tolist(), shown[32, 34].tolist()], [(BACKGROUND_LEVEL,) * 3, (40, 150, 60)]) <= 4
    assert max_difference([shown[32, 62].tolist()], [half]) <= 4


@pytest.mark.parametrize(("mode", "matte"), [(0x101, 255), (0x102, 0)])
def test_premultiplied_colors_are_separated_from_their_matte(mode: int, matte: int) -> None:
    share = 128 / 255
    stored = tuple(round(level * share + matte * (1 - share)) for level in (40, 150, 60))
    drawn = np.empty((64, 96, 4), np.uint8)
    drawn[:] = (*stored, 128)
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as output:
        stream = output.add_stream("qtrle", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "argb"
        for index in range(4):
            frame = av.VideoFrame.from_ndarray(drawn, format="rgba")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    data = file.getvalue()
    at = data.index(b"vmhd") + 8
    data = data[:at] + mode.to_bytes(2) + data[at + 2 :]
    shown = decode(data, 0, 4, 2, None).pixels[0]
    half = tuple(round((level + BACKGROUND_LEVEL) / 2) for level in (40, 150, 60))
    assert max_difference([shown[32, 48].tolist()], [half]) <= 2


def woven(count: int = 12) -> list[RGB]:
    """Interlaced frames: a bar moves between the even lines and the odd lines, which are 1/2 frame later."""
    frames = []
    for index in range(count):
        frame = np.full((96, 160, 3), 60, np.uint8)
        for field in (0, 1):
            left = 8 + (2 * index + field) * 6
            frame[field::2, left : left + 16] = 220
        frames.append(frame)
    return frames


def combed_fraction(picture: NDArray[Any]) -> float:
    """Fraction of the pixels that are much brighter, or much darker, than those above and below."""
    lines = picture[..., 1].astype(int)
    above, below = lines[1:-1] - lines[:-2], lines[1:-1] - lines[2:]
    return float(((above * below) > 40**2).mean())


INTERLACED: dict[str, dict[str, Any]] = {
    "h264": {"options": {"x264-params": "tff=1:bframes=2"}},
    "mpeg2": {"encoder": "mpeg2video", "container": "mpegts", "options": {"flags": "+ildct+ilme", "b": "4M"}},
    "prores": {"encoder": "prores_ks", "container": "mov", "pix_fmt": "yuv422p10le", "options": {"flags": "+ildct"}},
    "mpeg4": {"encoder": "mpeg4", "container": "matroska", "options": {"flags": "+ildct+ilme", "b": "4M"}},
}


@pytest.mark.parametrize("name", INTERLACED)
def test_interlaced_frames_are_deinterlaced(name: str) -> None:
    data = video(woven(), **INTERLACED[name])
    with open_video(data) as (container, stream):
        assert combed_fraction(next(container.decode(stream)).to_ndarray(format="rgb24")) > 0.05
    shown = decode(data, 0, 12, 4, None)
    assert shown.pixels.shape == (4, 96, 160, 3)
    assert max(map(combed_fraction, shown.pixels)) < 0.002


def test_interlaced_frame_of_odd_height_is_not_combed_when_resized() -> None:
    data = video([frame[:95] for frame in woven()], **INTERLACED["prores"])
    with open_video(data) as (container, stream):
        assert next(container.decode(stream)).interlaced_frame
    assert combed_fraction(decode(data, 0, 12, 2, (48, 80)).pixels[0]) < 0.002


def test_frames_that_the_container_alone_flags_as_interlaced_are_deinterlaced() -> None:
    data = video(woven(), encoder="mjpeg", container="mov", pix_fmt="yuvj420p", options={"qmin": "1", "qmax": "2"})
    at = data.index(b"stsd") + 12
    size = int.from_bytes(data[at : at + 4])
    fiel = struct.pack(">I4sBB", 10, b"fiel", 2, 9)
    flagged = data[:at] + (size + 10).to_bytes(4) + data[at + 4 : at + size] + fiel + data[at + size :]
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
        place = flagged.index(box, flagged.index(b"moov")) - 4
        flagged = flagged[:place] + (int.from_bytes(flagged[place : place + 4]) + 10).to_bytes(4) + flagged[place + 4 :]
    assert combed_fraction(decode(data, 0, 12, 2, None).pixels[0]) > 0.05
    assert combed_fraction(decode(flagged, 0, 12, 2, None).pixels[0]) < 0.002


def test_progressive_frames_are_not_deinterlaced() -> None:
    data = video(woven(), options={"crf": "4"})
    assert combed_fraction(decode(data, 0, 12, 2, None).pixels[0]) > 0.05


def with_sei(codec: str, message: bytes) -> bytes:
    """An MP4 of a picture with a white top left quarter, with an SEI message before its first picture."""
    quarter_white = np.zeros((48, 96, 3), np.uint8)
    quarter_white[:24, :48] = 255
    options = {"x265-params": "log-level=none:bframes=0"} if codec == "libx265" else {"bf": "0"}
    unit = (b"\x4e\x01" if codec == "libx265" else b"\x06") + message + b"\x80"
    plain = video([quarter_white] * 6, encoder=codec, options=options)
    file = io.BytesIO()
    with av.open(io.BytesIO(plain), "r") as source, av.open(file, "w", format="mp4") as output:
        given = source.streams.video[0]
        stream = output.add_stream_from_template(given)
        for index, packet in enumerate(source.demux(given)):
            if packet.size:
                data = bytes(packet) if index else len(unit).to_bytes(4) + unit + bytes(packet)
                copied = av.Packet(data)
                copied.pts, copied.dts, copied.time_base = packet.pts, packet.dts, packet.time_base
                copied.is_keyframe, copied.stream = packet.is_keyframe, stream
                output.mux(copied)
    return file.getvalue()


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize(
    ("horizontal", "vertical", "quarters", "corner"),
    [(0, 0, 1, (1, 0)), (0, 0, 2, (1, 1)), (0, 0, 3, (0, 1)), (1, 0, 0, (0, 1)), (0, 1, 0, (1, 0)), (1, 0, 1, (0, 0))],
)
def test_orientation_in_an_sei_message_is_applied(
    codec: str, horizontal: int, vertical: int, quarters: int, corner: tuple[int, int], tmp_path: Path
) -> None:
    # H.264 and H.265, annex D: cancel flag, two flips, 16-bit rotation, ue(1) of repetition, no extension, stop bit.
    bits = f"0{horizontal}{vertical}{quarters * 16384:016b}0100" + "1"
    payload = int(bits.ljust(24, "0"), 2).to_bytes(3)
    data = with_sei(codec, bytes([47, len(payload)]) + payload)
    (tmp_path / "clip").write_bytes(data)
    found = probe_by_ranges(SpanFile(Span(f"file://{tmp_path}/clip", 0, len(data))))
    frames = decode(data, 0, 6, 4, None)
    assert found == probe(data)
    assert (found.height, found.width) == frames.pixels.shape[1:3]
    assert frames.padded == 0
    for picture in frames.pixels:
        height, width = picture.shape[:2]
        rows = (slice(0, height // 2), slice(height // 2, height))
        columns = (slice(0, width // 2), slice(width // 2, width))
        assert picture[rows[corner[0]], columns[corner[1]]].mean() > 200
        assert picture.mean() < 80


def test_enabled_track_is_preferred_to_a_disabled_one() -> None:
    data = bytearray(case("2v_abf.mp4"))
    flags = data.index(b"tkhd") + 5
    assert data[flags : flags + 3] == b"\0\0\3"
    data[flags + 2] = 2
    assert (probe(bytes(data)).width, decode(bytes(data), 0, 20, 2, None).pixels.shape[2]) == (320, 320)


def video_with_cover(container: str, *, attached: bool) -> bytes:
    """A video whose first track is a cover picture."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        cover = output.add_stream("mjpeg", rate=10)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        main = output.add_stream("libx264", rate=10)
        main.width, main.height, main.pix_fmt = 96, 64, "yuv420p"
        if attached:
            cover.disposition = Disposition.attached_pic
        for index in range(8):
            for stream in (cover, main) if index == 0 else (main,):
                frame = av.VideoFrame.from_ndarray(gray(90, (stream.width, stream.height)), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 10)
                output.mux(stream.encode(frame))
        for stream in (cover, main):
            output.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska"])
@pytest.mark.parametrize("attached", [False, True])
def test_cover_picture_is_not_shown(container: str, attached: bool) -> None:
    found = probe(video_with_cover(container, attached=attached))
    assert (found.codec, found.width, found.frames) == ("h264", 96, 8)
