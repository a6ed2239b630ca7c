"""File signatures: the type of a file that is not a video, for the error on its row."""

from __future__ import annotations

import re

HEAD_BYTES = 4096
"""Number of bytes at the front of a file that are matched."""
ISO_BRANDS = re.compile(rb".{4}ftyp((?:heic|heix|heim|heis|mif1|mif2|miaf|avif|jxl ).*)", re.DOTALL)
"""Major brands of still images (ISO/IEC 23008-12, annex B; AVIF, section 8)."""
SEQUENCE_BRANDS = re.compile(rb"msf1|hevc|hevx|avis")
"""Compatible brands of a file that is a video as well."""
IMAGES = {
    "a JPEG image": rb"\xff\xd8\xff",
    "a PNG image": rb"\x89PNG\r\n\x1a\n",
    "an animated WebP, which FFmpeg cannot read (convert it to GIF)": rb"RIFF.{4}WEBPVP8X.*?ANIM",
    "a WebP image": rb"RIFF.{4}WEBP",
    "a BMP image": rb"BM.{4}\0\0\0\0",
    "a TIFF image": rb"II\*\0|MM\0\*",
    "a JPEG XL image": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "a JPEG 2000 image": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "a Photoshop image": rb"8BPS",
    "an icon": rb"\0\0\x01\0[^\0]\0",
    "an SVG drawing": rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<svg",
}
SOUNDS = {
    "MP3": rb"ID3|\xff[\xfb\xfa\xf3\xf2\xe3\xe2]",
    "AAC": rb"\xff[\xf1\xf9]",
    "FLAC": rb"fLaC",
    "WAV": rb"(?:RIFF|RF64|BW64).{4}WAVE",
    "AIFF": rb"FORM.{4}AIF[FC]",
    "AMR": rb"#!AMR",
    "AU": rb"\.snd",
    "CAF": rb"caff",
    "MIDI": rb"MThd",
    "AC-3": rb"\x0b\x77",
}
PLAYLISTS = {
    "an HLS or M3U playlist": rb"\s*#EXT(?:M3U|INF)",
    "an ffconcat list": rb"\s*ffconcat version",
    "a DASH manifest": rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<MPD",
    "a Smooth Streaming manifest": rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<SmoothStreamingMedia",
    "an SDP description": rb"v=0\r?\n",
    "a PLS playlist": rb"\s*\[playlist\]",
    "a SMIL or ASX playlist": rb"(?i:\s*<(?:smil|asx))",
    "an XSPF playlist": rb"\s*(?:<\?xml[^>]*>\s*)?<playlist",
}
OTHERS = {
    "a ZIP archive": rb"PK\x03\x04",
    "a gzip file: unpack it": rb"\x1f\x8b",
    "a 7z archive": rb"7z\xbc\xaf\x27\x1c",
    "a RAR archive": rb"Rar!\x1a\x07",
    "a Zstandard file: unpack it": rb"\x28\xb5\x2f\xfd",
    "an xz file: unpack it": rb"\xfd7zXZ\0",
    "a PDF document": rb"%PDF-",
    "a tar archive": rb".{257}ustar",
    "a file of zeros": rb"\0{64}",
}
TEXTS = {
    "a web page": rb"(?i:\s*(?:<!doctype html|<html))",
    "a Git LFS pointer: fetch the file itself": rb"version https://git-lfs",
    "an XML document, such as a store's error": rb"\s*<\?xml",
    "a JSON document": rb"\s*[{\[]\s*[\"{\[\]}]",
}
KINDS = (("image", IMAGES), ("audio_only", SOUNDS), ("playlist", PLAYLISTS), ("not_a_video", OTHERS), ("text", TEXTS))
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def still_image_name(head: bytes) -> str | None:
    """A description of a still image in an ISO container; None if the file is not one.

    Args:
        head: the file's first ``HEAD_BYTES``.
    """
    found = ISO_BRANDS.match(head)
    size = int.from_bytes(head[:4])
    if not found or SEQUENCE_BRANDS.search(head[8:size]):
        return None
    return f"a still image ({found[1][:4].decode().strip().upper()})"


def file_kind(head: bytes) -> tuple[str, str]:
    """The error kind for tables, and a description for messages.

    Args:
        head: the file's first ``HEAD_BYTES``; not empty.
    """
    for kind, signatures in KINDS:
        for name, pattern in signatures.items():
            if re.match(pattern, head, re.DOTALL):
                return kind, f"audio without video ({name})" if kind == "audio_only" else name
    if _is_text(head):
        return "text", "a text file"
    return "not_a_video", "a file of unknown type"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # otherwise the head ends within a character
            return False
        text = head[: error.start].decode("utf-8-sig")
    return not CONTROL.search(text)
