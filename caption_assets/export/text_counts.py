"""Counts of equal texts: exact ones of each shard, and their sum over the dataset in a sketch of constant size.

The counts of a shard lie in ``_text_counts/<selection>/<version>-<shard>.npz``, the sketch in ``total.npz`` beside
them. The sketch names the version of each shard that it contains, so that an export adds and subtracts only the
shards that have changed. Two exports at once may both write it; the shards that the last one does not know are added by
the next one, from their files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from caption_assets.captioning.text import split_words
from caption_assets.export.clip import CaptionedClip
from caption_assets.store.root import Root

COUNTS = "_text_counts"
"""Folder of all counts, relative to the root."""
_SUFFIX = ".npz"
TOTAL = f"total{_SUFFIX}"
ROWS = 2
"""Number of hashes of a text. Its count is the smallest of as many counters, each shared with other texts."""
WIDTH = 1 << 20
"""Number of counters for each hash: 1,000,000 windows add 1 to a count on average, and 10,000,000 add 10."""
ATTEMPTS = 3
"""Number of times that a sum is read again, because another export replaced files that it needs."""

Array = NDArray[Any]


def hash_text(text: str) -> int:
    """A hash of a text's words, 64 bits: case and punctuation do not matter."""
    return xxh3_64_intdigest((" ".join(split_words(text)) or text).encode())


@dataclass(frozen=True, slots=True)
class TextCounts:
    """The texts of a shard by their hashes."""

    hashes: Array
    """Different hashes, uint64."""
    counts: Array
    """Number of windows with each, uint32."""
    example: str = ""
    """The text that the whole dataset had most often when the shard was counted."""

    @classmethod
    def of(cls, counted: Mapping[int, int], example: str = "") -> TextCounts:
        """The counts by hash."""
        return cls(np.array(list(counted), np.uint64), np.array(list(counted.values()), np.uint32), example)

    @classmethod
    def from_bytes(cls, data: bytes) -> TextCounts:
        """Parse the content of a file."""
        with np.load(BytesIO(data), allow_pickle=False) as found:
            return cls(found["hashes"], found["counts"], found["example"].tobytes().decode())

    def to_bytes(self) -> bytes:
        """The content of a file."""
        return _pack(hashes=self.hashes, counts=self.counts, example=_as_array(self.example))


def _zeros() -> Array:
    return np.zeros((ROWS, WIDTH), np.int32)


@dataclass(slots=True)
class TextTotals:
    """The sum of the counts of several shards: a count-min sketch (Cormode and Muthukrishnan, 2005).

    A count is never too small. It is too large by the number of windows whose texts share all counters of the text.
    """

    windows: Array = field(default_factory=_zeros)
    """Number of windows, by hash and counter."""
    shards: Array = field(default_factory=_zeros)
    """Number of shards with a text, likewise."""
    versions: dict[str, str] = field(default_factory=dict)
    """The version of each shard that is contained."""

    @classmethod
    def from_bytes(cls, data: bytes) -> TextTotals:
        """Parse the content of a file."""
        totals = cls()
        with np.load(BytesIO(data), allow_pickle=False) as found:
            totals.versions = json.loads(found["versions"].tobytes())
            for counters, name in ((totals.windows, "windows"), (totals.shards, "shards")):
                counters.reshape(-1)[found["used"]] = found[name]
        return totals

    def to_bytes(self) -> bytes:
        """The content of a file: the counters that are not zero."""
        used = np.flatnonzero(self.windows).astype(np.uint32)
        windows, shards = (counters.reshape(-1)[used] for counters in (self.windows, self.shards))
        return _pack(used=used, windows=windows, shards=shards, versions=_as_array(json.dumps(self.versions)))

    @property
    def total(self) -> int:
        """Number of windows."""
        return int(self.windows[0].sum())

    def windows_with(self, hashed: int) -> int:
        """Number of windows with a text, given its hash."""
        return _estimate(self.windows, hashed)

    def shards_with(self, hashed: int) -> int:
        """Number of shards with a text, given its hash."""
        return _estimate(self.shards, hashed)

    def add(self, shard: str, version: str, counts: TextCounts) -> None:
        """Add a shard that is not contained yet."""
        self._change(counts, 1)
        self.versions[shard] = version

    def subtract(self, shard: str, counts: TextCounts) -> None:
        """Subtract a shard that is contained with these counts."""
        self._change(counts, -1)
        del self.versions[shard]

    def _change(self, counts: TextCounts, sign: int) -> None:
        for row in range(ROWS):
            counters = _counters(counts.hashes, row)
            np.add.at(self.windows[row], counters, sign * counts.counts.astype(np.int32))
            np.add.at(self.shards[row], counters, sign)


class TextTally:
    """The counts of a shard's texts while they are read.

    Args:
        totals: the totals so far, by which the example is chosen.
    """

    def __init__(self, totals: TextTotals) -> None:
        self._totals = totals
        self._counts: Counter[int] = Counter()
        self._example, self._hashed, self._most = "", -1, 0

    def add(self, clip: CaptionedClip) -> None:
        """Count the texts of a clip's windows."""
        for text in (text.text for window in clip.windows for text in window.texts):
            hashed = hash_text(text)
            self._counts[hashed] += 1
            if (found := self._totals.windows_with(hashed) + self._counts[hashed]) > self._most:
                self._most = found
                if hashed != self._hashed:
                    self._example, self._hashed = text, hashed

    @property
    def counts(self) -> TextCounts:
        """The counts."""
        return TextCounts.of(self._counts, self._example)


@dataclass(frozen=True, slots=True)
class CountFiles:
    """The files of counts of one selection of windows and texts."""

    root: Root
    selection: str
    """Hash of the settings that select them: counts of others differ."""

    @property
    def folder(self) -> str:
        """The folder, relative to the root."""
        return f"{COUNTS}/{self.selection}"

    def totals(self) -> TextTotals:
        """The stored sum; zeros if there is none."""
        try:
            return TextTotals.from_bytes(self.root.read(f"{self.folder}/{TOTAL}"))
        except (FileNotFoundError, ValueError, KeyError, EOFError, BadZipFile):  # missing, or of another version
            return TextTotals()

    def counted(self) -> set[tuple[str, str]]:
        """Shard and version of all counts, from one listing."""
        parts = (name.removesuffix(_SUFFIX).partition("-") for name in self.root.files(self.folder) if name != TOTAL)
        return {(shard, version) for version, _, shard in parts}

    def write(self, shard: str, version: str, counts: TextCounts) -> None:
        """Store the counts of a shard."""
        self.root.write(self._path(shard, version), counts.to_bytes())

    def read(self, shard: str, version: str) -> TextCounts:
        """The counts of a shard. Raises FileNotFoundError if another export has removed them."""
        return TextCounts.from_bytes(self.root.read(self._path(shard, version)))

    def sum(self, wanted: Mapping[str, str]) -> TextTotals:
        """Bring the stored sum up to date, and return it.

        Args:
            wanted: the shards of the dataset, each with its present version, or empty if that is unknown. A shard
                without counts of this version is in the sum with others, if there are any.

        Raises:
            StoreError: if a file cannot be read or written.
        """
        for _ in range(ATTEMPTS):
            counted = self.counted()
            found = {shard: version for shard, version in sorted(counted) if shard in wanted}
            found |= {shard: version for shard, version in wanted.items() if (shard, version) in counted}
            totals = self.totals()
            if totals.versions == found:
                return totals
            try:
                self._update(totals, found)
            except FileNotFoundError:
                continue
            break
        else:  # a file that was contained is gone
            totals = TextTotals()
            self._update(totals, found)
        self.root.write(f"{self.folder}/{TOTAL}", totals.to_bytes())
        for shard, version in counted - set(found.items()):
            self.root.remove(self._path(shard, version))
        return totals

    def _update(self, totals: TextTotals, wanted: Mapping[str, str]) -> None:
        changed = [shard for shard, version in totals.versions.items() if wanted.get(shard) != version]
        for shard in changed:
            totals.subtract(shard, self.read(shard, totals.versions[shard]))
        for shard in wanted.keys() - totals.versions.keys():
            totals.add(shard, wanted[shard], self.read(shard, wanted[shard]))

    def _path(self, shard: str, version: str) -> str:
        return f"{self.folder}/{version}-{shard}{_SUFFIX}"


def _estimate(counters: Array, hashed: int) -> int:
    return min(int(counters[row, hashed // WIDTH**row % WIDTH]) for row in range(ROWS))


def _counters(hashes: Array, row: int) -> Array:
    return (hashes // np.uint64(WIDTH**row)) % np.uint64(WIDTH)


def _as_array(text: str) -> Array:
    return np.frombuffer(text.encode(), np.uint8)


def _pack(**arrays: Array) -> bytes:
    sink = BytesIO()
    np.savez(sink, allow_pickle=False, **arrays)
    return sink.getvalue()
