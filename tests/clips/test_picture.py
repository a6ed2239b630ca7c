"""Pictures as players show them: files that went wrong in other projects, and colours by the standards' equations."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc
from numpy.typing import NDArray

from caption_assets.clips.clip import Span
from caption_assets.clips.container import UnreadableClip, open_video
from caption_assets.clips.decode import Frames, decode
from caption_assets.clips.picture import BACKGROUND, RGB, Renderer
from caption_assets.clips.primaries import narrowed
from caption_assets.clips.probe import Probe, probe, probe_by_ranges
from caption_assets.clips.reader import SpanFile
from caption_assets.clips.track import PLAIN
from tests.videos import gray, moving_video, video

pytestmark = pytest.mark.fast

CASES = Path(__file__).parent / "cases"
PATCHES = [(180, 40, 40), (40, 150, 60), (50, 80, 180), (150, 150, 40), (120, 50, 150), (60, 150, 150), (128, 128, 128)]
PATCHES += [(0, 0, 0), (187, 120, 60), (20, 20, 60), (90, 20, 20), (100, 140, 100)]
"""sRGB colours of the cases' twelve patches, in three rows."""


def case(name: str) -> bytes:
    return (CASES / name).read_bytes()


def probed(name: str) -> Probe:
    """A case's description, the same by ranges and by the whole file."""
    data = case(name)
    found = probe_by_ranges(SpanFile(Span(f"file://{CASES / name}", 0, len(data))))
    assert found == probe(data)
    return found


def frames_of(name: str, count: int = 4) -> Frames:
    return decode(case(name), 0, probed(name).frames, count, None)


def patches(picture: RGB, rows: int = 3, columns: int = 4) -> list[list[int]]:
    """Levels in the middles of a grid of patches."""
    height, width = picture.shape[:2]
    return [
        picture[height * (2 * row + 1) // (2 * rows), width * (2 * column + 1) // (2 * columns)].tolist()
        for row in range(rows)
        for column in range(columns)
    ]


def worst(found: list[list[int]], expected: Sequence[tuple[int, ...]]) -> int:
    return int(np.abs(np.array(found) - np.array(expected)).max())


def test_of_two_default_tracks_the_first_is_shown() -> None:
    found = probed("2v_abf.mp4")
    assert (found.width, found.height, found.frames, round(found.fps)) == (640, 360, 180, 30)
    assert frames_of("2v_abf.mp4").pixels.shape == (4, 360, 640, 3)


@pytest.mark.parametrize("name", ["port_nokey.mkv", "port_nokey_frag.mp4"])
def test_a_clip_that_begins_between_keyframes_is_upright(name: str) -> None:
    found = probed(name)
    assert (found.width, found.height, found.rotation) == (180, 320, 90)
    assert frames_of(name).pixels.shape == (4, 320, 180, 3)


@pytest.mark.parametrize("name", ["crop.mkv", "clap.mp4"])
def test_the_containers_crop_is_applied(name: str) -> None:
    found = probed(name)
    assert (found.width, found.height, found.coded_height) == (320, 160, 240)
    pixels = frames_of(name).pixels
    with open_video(case(name)) as (container, stream):
        whole = next(container.decode(stream)).to_ndarray(format="rgb24", src_colorspace="itu601")
    assert np.array_equal(pixels[0], whole[40:200])


def test_a_clip_that_turns_midway_keeps_its_shapes() -> None:
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
def test_wide_primaries_become_those_of_bt709(name: str) -> None:
    assert worst(patches(frames_of(name).pixels[0]), PATCHES) <= 3


def test_untagged_pictures_of_720_lines_are_bt709s() -> None:
    found = patches(frames_of("c_untag_hd709.mp4").pixels[0])
    assert worst(found[:2], [(220, 40, 40), (40, 180, 60)]) <= 3


@pytest.mark.parametrize("name", ["alpha_prores.mov", "alpha_qtrle.mov", "alpha_vp9.webm"])
def test_shapes_stand_on_the_background(name: str) -> None:
    [first, *_] = frames_of(name).pixels
    assert set(map(tuple, first.reshape(-1, 3)[:10].tolist())) == {(BACKGROUND,) * 3}
    is_green = (first[..., 1] > 240) & (first[..., 0] < 10)
    is_plain = (first == BACKGROUND).all(axis=-1)
    assert 0.05 < is_green.mean() < 0.95
    assert (is_green | is_plain).mean() > 0.97


@pytest.mark.parametrize(("name", "size"), [("x.mts", (320, 240)), ("x.3gp", (176, 144))])
def test_camcorders_and_phones_files_are_read(name: str, size: tuple[int, int]) -> None:
    found = probed(name)
    assert (found.width, found.height) == size
    assert frames_of(name).pixels.shape == (4, size[1], size[0], 3)


LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
"""Kr and Kb of BT.709, FCC, BT.601, SMPTE 240M and BT.2020 (ITU-T H.273, table 4)."""
COLOURS = [(180, 40, 40), (40, 150, 60), (50, 80, 180), (128, 128, 128), (250, 240, 30), (10, 220, 230)]


def coded(rgb: tuple[int, int, int], matrix: int, bits: int, *, full: bool) -> list[int]:
    """Luma and colour differences of R'G'B' levels of 8 bits (ITU-T H.273, equations 20 to 39 and 60 to 62)."""
    r, g, b = (level / 255 for level in rgb)
    if matrix == 8:
        y, u, v = g / 2 + (r + b) / 4, g / 2 - (r + b) / 4, (r - b) / 2
    else:
        kr, kb = LUMA[matrix]
        y = kr * r + (1 - kr - kb) * g + kb * b
        u, v = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    middle, scale = 1 << bits - 1, 1 << bits - 8
    if full:
        most = (1 << bits) - 1
        return [round(most * y), round(most * u) + middle, round(most * v) + middle]
    return [round(scale * (16 + 219 * y)), round(scale * 224 * u) + middle, round(scale * 224 * v) + middle]


def flat_frame(name: str, levels: list[int], size: tuple[int, int] = (64, 48)) -> av.VideoFrame:
    """A frame of one colour, by the levels of its planes."""
    frame = av.VideoFrame(*size, name)
    for plane, level in zip(frame.planes, levels, strict=True):
        np.frombuffer(plane, np.uint16 if frame.format.components[0].bits > 8 else np.uint8)[:] = level  # type: ignore[call-overload]
    return frame


@pytest.fixture(scope="module")
def renderer() -> Iterator[Callable[[av.VideoFrame], RGB]]:
    with open_video(moving_video(2)) as (_, stream):

        def render(frame: av.VideoFrame) -> RGB:
            return Renderer(stream, PLAIN, (frame.height, frame.width)).render(frame).pixels

        yield render


FORMATS = [("yuv420p", 8), ("yuv422p", 8), ("yuv444p", 8), ("yuv420p10le", 10), ("yuv444p12le", 12)]


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(("name", "bits"), FORMATS)
@pytest.mark.parametrize("matrix", [1, 4, 6, 7, 8, 9])
def test_every_matrix_and_range_gives_the_colours_of_the_standard(
    renderer: Callable[[av.VideoFrame], RGB], matrix: int, name: str, bits: int, full: bool
) -> None:
    for rgb in COLOURS:
        frame = flat_frame(name, coded(rgb, matrix, bits, full=full))
        frame.colorspace = matrix
        frame.color_range = ColorRange.JPEG if full else ColorRange.MPEG
        assert worst([renderer(frame)[24, 32].tolist()], [rgb]) <= 3


@pytest.mark.parametrize(
    ("size", "matrix"), [((704, 576), 6), ((960, 540), 6), ((1280, 534), 1), ((960, 720), 1), ((720, 1280), 1)]
)
def test_untagged_colours_are_those_that_players_assume(
    renderer: Callable[[av.VideoFrame], RGB], size: tuple[int, int], matrix: int
) -> None:
    frame = flat_frame("yuv420p", coded((180, 40, 40), matrix, 8, full=False), size)
    assert worst([renderer(frame)[size[1] // 2, size[0] // 2].tolist()], [(180, 40, 40)]) <= 3


@pytest.mark.parametrize("colorspace", [0, 1, 2, 3, 8])
def test_rgb_is_left_as_it_is(renderer: Callable[[av.VideoFrame], RGB], colorspace: int) -> None:
    frame = flat_frame("gbrp", [150, 60, 40])
    frame.colorspace = colorspace
    assert renderer(frame)[24, 32].tolist() == [40, 150, 60]


@pytest.mark.parametrize("code", [10, 11, 13, 14])
def test_colours_that_a_matrix_does_not_decode_are_refused(code: int) -> None:
    data = video([gray(90, (64, 48))] * 4, prepare=lambda stream: setattr(stream.codec_context, "colorspace", code))
    for look in (lambda: probe(data), lambda: decode(data, 0, 4, 2, None)):
        with pytest.raises(UnreadableClip) as refused:
            look()
        assert refused.value.kind == "unknown_colours"


def chromaticities(*points: tuple[float, float]) -> NDArray[Any]:
    """Linear RGB to XYZ, by x and y of red, green, blue and white (SMPTE RP 177)."""
    *colours, white = ([x / y, 1, (1 - x - y) / y] for x, y in points)
    columns = np.array(colours).T
    return columns * np.linalg.solve(columns, np.array(white))


D65 = (0.3127, 0.3290)
BT709 = chromaticities((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65)
WIDE = {
    ColorPrimaries.BT2020: chromaticities((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),  # ITU-R BT.2020
    ColorPrimaries.SMPTE432: chromaticities((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),  # SMPTE EG 432-1
}


@pytest.mark.parametrize("primaries", WIDE)
@pytest.mark.parametrize("transfer", [ColorTrc.BT709, ColorTrc.BT2020_10, ColorTrc.UNSPECIFIED, ColorTrc.IEC61966_2_1])
def test_a_colour_keeps_its_light(primaries: ColorPrimaries, transfer: ColorTrc) -> None:
    colours = np.array(COLOURS[:4]) / 255
    light = ((colours + 0.055) / 1.055) ** 2.4  # IEC 61966-2-1
    wide = light @ (np.linalg.inv(WIDE[primaries]) @ BT709).T
    is_srgb = transfer == ColorTrc.IEC61966_2_1
    signal = 1.055 * wide ** (1 / 2.4) - 0.055 if is_srgb else wide ** (1 / 2.4)  # ITU-R BT.1886
    shown = narrowed(np.rint(255 * signal).astype(np.uint8)[None], primaries, transfer)
    assert worst(shown[0].tolist(), COLOURS[:4]) <= 3


def test_a_turn_of_each_kind_is_applied_by_the_container(tmp_path: Path) -> None:
    lit = np.zeros((48, 96, 3), np.uint8)
    lit[:24, :48] = 255  # top left
    plain = video([lit] * 4)
    at = plain.index(b"tkhd") + 4 + 40  # version 0: the matrix
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
    for (a, b, c, d), corner in corners.items():
        matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
        data = plain[:at] + matrix + plain[at + 36 :]
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
