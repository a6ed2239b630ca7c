"""Tests with untrusted files: each is decoded or refused; none crashes, hangs, exhausts memory or opens other files."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from caption_assets.errors import UnreadableClip
from tests.videos import VIDEO_KINDS, audio_only, counting_video, decode, moving_video, video_of_kind

FRAMES = 48
KINDS = {"not_a_video", "no_video_stream", "unknown_codec", "damaged", "too_large"}


def outcome(data: bytes, frames: int = FRAMES) -> str:
    """``frames`` if the file is decoded, or else the kind of its refusal."""
    try:
        return "frames" if decode(data, 0, frames, 4, (28, 56)).pixels.shape == (4, 28, 56, 3) else "other frames"
    except UnreadableClip as refusal:
        return refusal.kind


@pytest.mark.fast
@pytest.mark.parametrize("name", VIDEO_KINDS)
def test_complete_file_of_every_kind_is_decoded(name: str) -> None:
    assert outcome(video_of_kind(name), VIDEO_KINDS[name].get("frames", 41)) == "frames"


def patched(data: bytes, box: bytes, offset: int, value: bytes) -> bytes:
    """An MP4 with some bytes of a box replaced, at an offset from the end of the box's name."""
    start = data.index(box, data.index(b"moov")) + len(box) + offset
    return data[:start] + value + data[start + len(value) :]


def vp9_that_becomes_huge() -> bytes:
    """A VP9 file whose last keyframe has 12,000x12,000 pixels by its header (sizes less one, in bits 36 to 68)."""
    data = bytearray(video_of_kind("vp9"))
    start = data.rindex(b"\x49\x83\x42") - 1  # the sync code is the header's second byte
    header = int.from_bytes(data[start : start + 9]) & ~(0xFFFFFFFF << 4)
    data[start : start + 9] = (header | 11_999 << 20 | 11_999 << 4).to_bytes(9)
    return bytes(data)


def huge_gif() -> bytes:
    data = video_of_kind("gif")
    return data[:6] + struct.pack("<HH", 12_000, 12_000) + data[10:]


def huge_raw_video() -> bytes:
    """A Matroska file that declares 16,384x4,112 pixels (elements B0 and BA, of 2 bytes each)."""
    data = moving_video(4, size=(300, 304), encoder="rawvideo", container="matroska")
    for element, size, huge in ((0xB0, 300, 16_384), (0xBA, 304, 4_112)):
        data = data.replace(struct.pack(">BBH", element, 0x82, size), struct.pack(">BBH", element, 0x82, huge))
    return data


@pytest.mark.fast
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: b"", "empty"),
        (lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 20, "text"),
        (lambda: bytes(range(256)) * 64, "not_a_video"),
        (lambda: video_of_kind("h264")[:40], "damaged"),
        (audio_only, "audio_only"),
        (lambda: patched(video_of_kind("h264"), b"stsd", 12, b"none"), "unknown_codec"),
        (lambda: counting_video(FRAMES)[:1500], "damaged"),
    ],
    ids=["empty", "web page", "noise", "header", "audio only", "unknown codec", "no index"],
)
def test_file_without_video_is_refused_with_its_kind(make: Callable[[], bytes], kind: str) -> None:
    assert outcome(make()) == kind


@pytest.mark.fast
@pytest.mark.parametrize(
    "make",
    [
        lambda: patched(video_of_kind("h264"), b"tkhd", 76, struct.pack(">II", 30_000 << 16, 30_000 << 16)),
        lambda: patched(video_of_kind("h264"), b"avc1", 24, struct.pack(">HH", 30_000, 30_000)),
    ],
    ids=["track", "sample entry"],
)
def test_file_whose_container_declares_too_large_a_size_is_decoded(make: Callable[[], bytes]) -> None:
    assert outcome(make()) == "frames"


@pytest.mark.fast
@pytest.mark.parametrize(
    ("make", "kind"), [(huge_raw_video, "too_large"), (huge_gif, "too_large"), (vp9_that_becomes_huge, "frames")]
)
def test_huge_pictures_allocate_no_memory(make: Callable[[], bytes], kind: str) -> None:
    data = make()
    before = peak_kb()
    assert outcome(data) == kind
    assert peak_kb() - before < 50_000  # one such picture has 216 MB


def peak_kb() -> int:
    """Peak memory of this process since the last call. The peak is reset by each call (proc(5))."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.fast
@pytest.mark.parametrize(
    "text",
    ["ffconcat version 1.0\nfile {}\n", "#EXTM3U\n#EXTINF:2,\n{}\n", "v=0\nm=video 0 RTP/AVP 96\na=control:{}\n"],
    ids=["ffconcat", "HLS", "SDP"],
)
@pytest.mark.parametrize("relative", [True, False])
def test_playlist_does_not_open_other_files(
    text: str, relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(video_of_kind("h264"))
    monkeypatch.chdir(tmp_path)
    assert outcome(text.format(secret.name if relative else secret).encode()) == "playlist"


@pytest.mark.parametrize("name", ["h264", "h264 transport stream", "h264 fragmented", "vp9"])
def test_truncated_file_is_decoded_or_refused(name: str) -> None:
    data = video_of_kind(name)
    cuts = [len(data) * part // 21 for part in range(1, 21)]
    assert {outcome(data[:cut], 40) for cut in cuts} <= KINDS | {"frames"}


@pytest.mark.parametrize("name", ["h264", "hevc", "vp9", "av1 one group", "gif"])
def test_file_with_flipped_bits_is_decoded_or_refused(name: str) -> None:
    rng = np.random.default_rng(0)
    data = np.frombuffer(video_of_kind(name), np.uint8)
    seen = set()
    for _ in range(100):
        flipped = data.copy()
        places = rng.integers(0, len(data), rng.integers(1, 9))
        flipped[places] ^= 1 << rng.integers(0, 8, len(places)).astype(np.uint8)
        seen.add(outcome(flipped.tobytes()))
    assert seen <= KINDS | {"frames"}
    assert "frames" in seen
