"""A video track as its container describes it, beside what FFmpeg tells through PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO, Protocol, runtime_checkable

from caption_assets.video.display import Orientation


@dataclass(frozen=True, slots=True)
class Crop:
    """The part of a decoded picture that is displayed.

    The edges are in pixels of the decoded picture, and may lie between two.
    """

    left: Fraction = Fraction(0)
    top: Fraction = Fraction(0)
    right: Fraction = Fraction(0)
    bottom: Fraction = Fraction(0)

    def slices(self, width: int, height: int) -> tuple[slice, slice]:
        """Rows and columns that are left of a picture; all, where the crop would leave nothing or is no crop."""
        rows = slice(round(self.top), height - round(self.bottom))
        columns = slice(round(self.left), width - round(self.right))
        fits = 0 <= rows.start < rows.stop <= height and 0 <= columns.start < columns.stop <= width
        return (rows, columns) if fits else (slice(0, height), slice(0, width))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that are left of a picture."""
        rows, columns = self.slices(width, height)
        return columns.stop - columns.start, rows.stop - rows.start


NO_CROP = Crop()


@dataclass(frozen=True, slots=True)
class Track:
    """One video track."""

    crop: Crop = NO_CROP
    orientation: Orientation | None = None
    """Of frames that tell none themselves; None where neither the container nor the first picture does."""
    encryption: str | None = None
    """Name of the scheme by which the pictures are encrypted; None if they are not."""
    drm: bool = False
    """Whether only one vendor's players have the keys."""
    proprietary_colours: str | None = None
    """Name of a system of colours that only its own decoders know; None if the pictures have ordinary ones."""
    matte: int | None = None
    """Level of the plain picture that colours are already mixed with, in proportion to their transparency: 0 or 255.
    None where they are not (straight alpha)."""


DEFAULT_TRACK = Track()


@runtime_checkable
class ByteRanges(Protocol):
    """A file that is read by ranges."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` to before ``end``; fewer at the file's end."""

    def prefetch(self, start: int, end: int) -> None:
        """Fetch a range in one request: it is read next, in pieces."""


class OpenFile:
    """An open file as ``ByteRanges``, for as long as nobody else reads it. It is left at the position it had.

    Args:
        file: a binary file that can be sought.
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
        """Does nothing: an open file is read without requests."""
