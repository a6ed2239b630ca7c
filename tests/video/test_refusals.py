"""Tests of files that cannot be captioned: each is refused with its kind."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import av
import numpy as np
import pytest
from av.stream import Disposition

from caption_assets.errors import UnreadableClip
from caption_assets.store.span import Span
from caption_assets.store.span_file import SpanFile
from caption_assets.video.probe import probe_by_ranges
from tests.videos import audio_only, counting_video, decode, moving_video, noise_video, tone

pytestmark = pytest.mark.fast

CASES = Path(__file__).parent / "cases"


def picture(encoder: str, muxer: str, pixel_format: str, count: int = 1) -> bytes:
    """A file of pictures in an image format."""
    return moving_video(count, encoder=encoder, container=muxer, pix_fmt=pixel_format)


def heic() -> bytes:
    brands = b"heic" + bytes(4) + b"mif1heic"
    return struct.pack(">I4s", 8 + len(brands), b"ftyp") + brands + struct.pack(">I4sI", 20, b"meta", 0) + bytes(8)


def song_with_cover() -> bytes:
    """An MP4 of audio with a cover picture."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        track = output.add_stream("aac", rate=16_000)
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        output.mux(cover.encode(frame))
        output.mux(cover.encode(None))
        for index in range(25):
            output.mux(track.encode(tone(index)))
        output.mux(track.encode(None))
    return file.getvalue()


def sample_entry(kind: bytes) -> bytes:
    """An MP4 whose sample entry has another type."""
    data = counting_video(10)
    at = data.index(b"stsd")
    return data[:at] + data[at:].replace(b"avc1", kind, 1)


def scrambled(packet_bytes: int, *, share: str) -> bytes:
    """A transport stream whose video packets are scrambled: all, or only those without header and adaptation field."""
    data = bytearray(noise_video("mpeg2video", container="mpegts", sound=False))
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    for packet in packets:
        is_video = int.from_bytes(packet[1:3]) & 0x1FFF == 256
        is_start = bool(packet[1] & 0x40)
        if is_video and (share == "all" or (not is_start and packet[3] & 0x30 == 0x10)):
            packet[3] |= 0x80
            packet[4:] = bytes(byte ^ 0xA5 for byte in packet[4:])
    return b"".join(bytes(packet_bytes - 188) + packet for packet in packets)


def scrambled_disc() -> bytes:
    """A program stream whose PES headers flag the video as scrambled, as on a DVD."""
    data = bytearray(noise_video("mpeg2video", container="vob", sound=False))
    for found in re.finditer(rb"\0\0\x01\xe0..[\x80-\x8f]", data, re.DOTALL):
        data[found.start() + 6] |= 0x10
    return bytes(data)


def protected_asf(guid: str) -> bytes:
    """A Windows Media file with an additional object in its header."""
    data = noise_video("msmpeg4v3", container="asf", sound=False)
    size, count = struct.unpack("<QI", data[16:28])
    content = struct.pack("<I4s", 4, b"key\0") * 4
    added = UUID(guid).bytes_le + struct.pack("<Q", 24 + len(content)) + content
    return data[:16] + struct.pack("<QI", size + len(added), count + 1) + data[28:30] + added + data[30:]


ENCRYPTION = bytes.fromhex("6d8092 62408f 50338101 503588 47e18105 47e28101")
"""A ContentEncodings element with one ContentEncryption."""
DOLBY_MAPPING = bytes.fromhex("41e48f 41e784 64766343 41ed85 01000a0000")
"""A BlockAdditionMapping element of Dolby Vision, profile 5."""


def matroska_with(element: bytes) -> bytes:
    """A Matroska file with an additional element in its first track."""
    data = noise_video(container="matroska", sound=False)
    tracks = data.index(b"\x16\x54\xae\x6b", data.index(b"\x16\x54\xae\x6b") + 1)  # the first is in the seek head
    entry = data.index(b"\xae", data.index(b"\xbf\x84", tracks) + 6)  # after the checksum, which may contain any byte
    length = 9 - data[entry + 1].bit_length()
    size = int.from_bytes(data[entry + 1 : entry + 1 + length]) & ((1 << 7 * length) - 1)
    inside = data[entry + 1 + length :][:size]
    rest = data[entry + 1 + length + size :]
    longer = b"\xae" + (1 << 56 | size + len(element)).to_bytes(8) + inside + element
    whole = b"\x16\x54\xae\x6b" + b"\x01" + b"\xff" * 7 + longer  # of unknown size
    return data[:tracks] + whole + rest


def dolby_vision(profile: int) -> bytes:
    """An MP4 whose sample entry declares Dolby Vision."""
    data = counting_video(10)
    at = data.index(b"avcC") - 4
    box = struct.pack(">I4sBBB", 32, b"dvcC", 1, 0, profile << 1) + bytes(21)
    data = data[:at] + box + data[at:]
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        place = data.index(kind, data.index(b"moov")) - 4
        data = data[:place] + (int.from_bytes(data[place : place + 4]) + 32).to_bytes(4) + data[place + 4 :]
    return data


WMDRM = "2211b3fb-bd23-11d2-b4b7-00a0c955fc6e"
EXTENDED = "298ae614-2622-4c17-b935-dae07ee9289c"

FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "empty"),
    "common encryption": (lambda: (CASES / "cenc.mp4").read_bytes(), "encrypted"),
    "encrypted entry": (lambda: sample_entry(b"encv"), "encrypted"),
    "FairPlay": (lambda: sample_entry(b"drmi"), "drm"),
    "scrambled broadcast": (lambda: scrambled(188, share="all"), "encrypted"),
    "scrambled payloads": (lambda: scrambled(188, share="payloads"), "encrypted"),
    "scrambled camcorder file": (lambda: scrambled(192, share="all"), "encrypted"),
    "scrambled disc": (scrambled_disc, "encrypted"),
    "encrypted Matroska": (lambda: matroska_with(ENCRYPTION), "encrypted"),
    "Windows Media DRM": (lambda: protected_asf(WMDRM), "drm"),
    "PlayReady": (lambda: protected_asf(EXTENDED), "drm"),
    "Dolby Vision alone": (lambda: dolby_vision(5), "unknown_colours"),
    "Dolby Vision alone in Matroska": (lambda: matroska_with(DOLBY_MAPPING), "unknown_colours"),
    "JPEG": (lambda: picture("mjpeg", "image2pipe", "yuvj420p"), "image"),
    "PNG": (lambda: picture("png", "image2pipe", "rgb24"), "image"),
    "WebP": (lambda: picture("libwebp", "webp", "yuv420p"), "image"),
    "animated WebP": (lambda: picture("libwebp_anim", "webp", "yuv420p", 4), "image"),
    "HEIC": (heic, "image"),
    "audio in MP4": (audio_only, "audio_only"),
    "a song with a cover": (song_with_cover, "audio_only"),
    "MP3": (lambda: b"ID3\4" + bytes(200), "audio_only"),
    "WAV": (lambda: b"RIFF\0\0\0\0WAVEfmt " + bytes(200), "audio_only"),
    "FLAC": (lambda: b"fLaC" + bytes(200), "audio_only"),
    "HLS": (lambda: b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:2,\na.ts\n", "playlist"),
    "DASH": (lambda: b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>', "playlist"),
    "ffconcat": (lambda: b"ffconcat version 1.0\nfile a.mp4\n", "playlist"),
    "web page": (lambda: b"<!DOCTYPE html><html>404</html>", "text"),
    "JSON": (lambda: b'{"error": "no such key"}', "text"),
    "Git LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "text"),
    "text cut within a character": (lambda: "ö".encode() * 2047 + b"a\xc3", "text"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(100), "not_a_video"),
    "zeros": (lambda: bytes(5000), "not_a_video"),
    "noise": (lambda: np.random.default_rng(0).bytes(5000), "not_a_video"),
}


@pytest.mark.parametrize("name", FILES)
def test_file_that_cannot_be_captioned_is_refused_with_its_kind(name: str, tmp_path: Path) -> None:
    make, kind = FILES[name]
    data = make()
    (tmp_path / "clip").write_bytes(data)
    with pytest.raises(UnreadableClip) as of_probe:
        probe_by_ranges(SpanFile(Span(f"file://{tmp_path}/clip", 0, len(data))))
    with pytest.raises(UnreadableClip) as of_decode:
        decode(data, 0, 4, 2, None)
    assert (of_probe.value.kind, of_decode.value.kind) == (kind, kind)
    assert str(of_probe.value) == str(of_decode.value) != ""


@pytest.mark.parametrize("container", ["mpegts", "vob", "asf", "matroska"])
def test_file_that_is_not_encrypted_is_accepted(container: str, tmp_path: Path) -> None:
    codec = {"asf": "msmpeg4v3", "matroska": "libx264"}.get(container, "mpeg2video")
    data = noise_video(codec, container=container, sound=False)
    (tmp_path / "clip").write_bytes(data)
    assert probe_by_ranges(SpanFile(Span(f"file://{tmp_path}/clip", 0, len(data)))).frames == 50


def test_dolby_vision_with_a_compatible_base_layer_is_decoded() -> None:
    assert decode(dolby_vision(8), 0, 10, 2, None).pixels.shape == (2, 48, 64, 3)


def test_broadcast_with_one_damaged_packet_is_not_scrambled(tmp_path: Path) -> None:
    data = bytearray(noise_video("mpeg2video", container="mpegts", sound=False))
    places = [at for at in range(0, len(data), 188) if int.from_bytes(data[at + 1 : at + 3]) & 0x1FFF == 256]
    data[places[20] + 3] |= 0x80
    (tmp_path / "clip").write_bytes(data)
    assert probe_by_ranges(SpanFile(Span(f"file://{tmp_path}/clip", 0, len(data)))).frames == 50
