"""Properties of a video track that its container stores and PyAV does not expose."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO, Protocol, runtime_checkable

from caption_assets.video.display import Orientation


@dataclass(frozen=True, slots=True)
class Crop:
    """The edges to cut off a decoded picture, in pixels, which may be fractional."""

    left: Fraction = Fraction(0)
    top: Fraction = Fraction(0)
    right: Fraction = Fraction(0)
    bottom: Fraction = Fraction(0)

    def slices(self, width: int, height: int) -> tuple[slice, slice]:
        """Rows and columns of the displayed part; all of them if the crop is invalid."""
        rows = slice(round(self.top), height - round(self.bottom))
        columns = slice(round(self.left), width - round(self.right))
        fits = 0 <= rows.start < rows.stop <= height and 0 <= columns.start < columns.stop <= width
        return (rows, columns) if fits else (slice(0, height), slice(0, width))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the displayed part."""
        rows, columns = self.slices(width, height)
        return columns.stop - columns.start, rows.stop - rows.start


NO_CROP = Crop()


@dataclass(frozen=True, slots=True)
class Track:
    """One video track."""

    crop: Crop = NO_CROP
    orientation: Orientation | None = None
    """Orientation of frames that state none; None if neither the container nor the first picture states one."""
    encryption: str | None = None
    """Name of the encryption scheme; None if the track is not encrypted."""
    drm: bool = False
    """Whether only one vendor's players have the keys."""
    proprietary_colors: str | None = None
    """Name of a color system that FFmpeg cannot convert; None for standard colors."""
    matte: int | None = None
    """Level of the background in premultiplied colors: 0 or 255. None for straight alpha."""


DEFAULT_TRACK = Track()


@runtime_checkable
class ByteRanges(Protocol):
    """A file that is read by ranges."""

    @property
    def size(self) -> int:
        """Size of the file, in bytes."""

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` to before ``end``; fewer at the file's end."""

    def prefetch(self, start: int, end: int) -> None:
        """Fetch a range in one request, to be read in pieces next."""


class OpenFile:
    """An open file as ``ByteRanges``. Its position is kept.

    Args:
        file: a seekable binary file that no other thread reads.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        position = file.tell()
        self.size = file.seek(0, 2)
        file.seek(position)

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` to before ``end``; fewer at the file's end."""
        position = self._file.tell()
        self._file.seek(start)
        data = b""
        while len(data) < end - start and (piece := self._file.read(end - start - len(data))):
            data += piece
        self._file.seek(position)
        return data

    def prefetch(self, start: int, end: int) -> None:
        """Do nothing: an open file is read without requests."""
