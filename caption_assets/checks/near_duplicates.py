"""Near-duplicate captions: groups of texts with mostly the same sequences of words, and counts of distinct texts.

Both cost the same for each caption, however many there are. Groups are found with MinHash: the share of equal minima
of ``HASHES`` hash functions estimates the Jaccard similarity of two texts' sequences of ``SHINGLE`` words, and texts
that agree in one of ``BANDS`` bands of minima are compared. Distinct texts are counted over many shards with samples of
their smallest hashes, which are the same texts in each shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

SHINGLE = 2
"""Number of words in a sequence."""
BANDS = 10
ROWS = 5
"""Number of minima in a band. Texts with a similarity of 0.8 share a band with a probability of 0.98."""
HASHES = BANDS * ROWS
MIN_SIMILARITY = 0.7
"""Minimum estimated similarity of near-duplicates."""
SAMPLE = 128
"""Maximum number of hashes in a shard's sample. Over 200 shards the standard error of a share is below 1 %."""
HASH_BITS = 48
"""Size of a sampled hash: a sum of JSON numbers stays exact in every reader."""

_random = np.random.default_rng(0)
_COEFFICIENTS = _random.integers(1, 2**63, size=(HASHES, 1), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _random.integers(0, 2**63, size=(HASHES, 1), dtype=np.uint64)
_BAND_FACTORS = _random.integers(1, 2**63, size=(BANDS, ROWS), dtype=np.uint64)
_PLACES = _random.integers(1, 2**63, size=SHINGLE, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


class TextGroups:
    """Groups of near-duplicates. A text belongs to the group with whose first text it mostly agrees."""

    def __init__(self) -> None:
        self._words: dict[str, int] = {}
        """Hash of each word."""
        self._exact: dict[int, int] = {}
        """Group by the hash of the whole text."""
        self._bands: dict[int, int] = {}
        """Group by hash of a band of minima, for the first text of each group."""
        self._minima: list[NDArray[np.uint32]] = []
        """The minima of the first text of each group."""

    def group(self, words: Sequence[str]) -> int:
        """The number of a text's group, from 0. A text without a similar one before it begins the next group."""
        exact = text_hash(words)
        if (known := self._exact.get(exact)) is not None:
            return known
        minima = self._minima_of(words)
        bands = (minima.reshape(BANDS, ROWS) * _BAND_FACTORS).sum(axis=1).tolist()
        found = self._similar(minima, bands)
        if found is None:
            found = len(self._minima)
            self._minima.append(minima)
            for band in bands:
                self._bands.setdefault(band, found)
        self._exact[exact] = found
        return found

    def _similar(self, minima: NDArray[np.uint32], bands: Iterable[int]) -> int | None:
        for candidate in dict.fromkeys(self._bands[band] for band in bands if band in self._bands):
            if np.count_nonzero(self._minima[candidate] == minima) >= MIN_SIMILARITY * HASHES:
                return candidate
        return None

    def _minima_of(self, words: Sequence[str]) -> NDArray[np.uint32]:
        known = self._words
        hashes = [known.get(word) or known.setdefault(word, xxh3_64_intdigest(word.encode())) for word in words]
        hashes += [0] * (SHINGLE - len(hashes))
        each = np.array(hashes, dtype=np.uint64)
        shingles = np.zeros(len(each) - SHINGLE + 1, dtype=np.uint64)
        for place, factor in enumerate(_PLACES):
            shingles += each[place : place + len(shingles)] * factor
        shingles ^= shingles >> np.uint64(29)  # the high bits of the products depend on all words
        minima: NDArray[np.uint64] = (_COEFFICIENTS * shingles + _OFFSETS).min(axis=1)
        return (minima >> np.uint64(32)).astype(np.uint32)


def text_hash(words: Sequence[str]) -> int:
    """The hash of a text without case and punctuation."""
    return xxh3_64_intdigest(" ".join(words).encode())


@dataclass(frozen=True, slots=True)
class DistinctTexts:
    """The distinct texts of a shard: their number, and a sample by hash."""

    count: int = 0
    sample: tuple[int, ...] = ()
    """The ``SAMPLE`` smallest hashes, sorted. If there are fewer, they are all."""

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]]) -> DistinctTexts:
        """Count the distinct texts among lists of words."""
        hashes = {text_hash(words) >> (64 - HASH_BITS) for words in texts}
        return cls(len(hashes), tuple(sorted(hashes)[:SAMPLE]))


def count_distinct(shards: Sequence[DistinctTexts]) -> int:
    """The number of distinct texts over several shards: exact if all samples are complete, otherwise an estimate.

    A text that is repeated within a shard is counted exactly. The share of the shards' distinct texts that other shards
    have too is that of the sampled hashes.
    """
    limit = min((one.sample[-1] for one in shards if len(one.sample) < one.count), default=1 << HASH_BITS)
    sampled = [hash for one in shards for hash in one.sample if hash <= limit]
    total = sum(one.count for one in shards)
    return round(total * len(set(sampled)) / len(sampled)) if sampled else total
