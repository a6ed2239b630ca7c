"""The summaries of all shards of a root: read from one merged object, and anew only if they changed.

The merged object has each summary with the tag that its object had. A process that merges at the same time as another
may overwrite the other's result; the next one finds the tags that differ and repairs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from caption_assets.report.shard_summary import SUMMARIES, ShardSummary, decode_summary, summary_path
from caption_assets.store.previews import PARALLEL_READS
from caption_assets.store.root import Root
from caption_assets.store.tables import TableError

MERGED = f"{SUMMARIES}/all.parquet"
SCHEMA = pa.schema([("shard", pa.string()), ("tag", pa.string()), ("summary", pa.string())])
_BEFORE, _AFTER = summary_path("*").split("*")


@dataclass(frozen=True, slots=True)
class Summaries:
    """The summaries of a root."""

    tags: Mapping[str, str]
    """Tag of each summary's object, by shard."""
    json: Mapping[str, str]
    """Each summary as JSON, by shard."""
    is_merged: bool
    """Whether the merged object in the root has exactly these."""

    @classmethod
    def read(cls, root: Root) -> Summaries:
        """Read the merged object, and the summaries that changed since it was written.

        Raises:
            StoreError: if the root cannot be read.
        """
        tags = summary_tags(root)
        merged = _read_merged(root)
        known = {shard: json for shard, (tag, json) in merged.items() if tags.get(shard) == tag}
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            changed = [shard for shard in sorted(tags) if shard not in known]
            found = dict(zip(changed, pool.map(partial(_read, root), changed), strict=True))
        known |= {shard: json for shard, json in found.items() if json is not None}
        return cls(tags, dict(sorted(known.items())), is_merged=not changed and merged.keys() == known.keys())

    def write(self, root: Root) -> None:
        """Write the merged object.

        Raises:
            StoreError: if the root cannot be written.
        """
        rows = [{"shard": shard, "tag": self.tags[shard], "summary": json} for shard, json in self.json.items()]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), sink, compression="zstd")
        root.write(MERGED, sink.getvalue().to_pybytes())

    def decode(self) -> list[ShardSummary]:
        """The summaries, sorted by shard. Those that are damaged or of another release are left out."""
        return list(_decode(self.json.values()))


def summary_tags(root: Root) -> dict[str, str]:
    """The tag of each summary's object, by shard, from one listing.

    Raises:
        StoreError: if the root cannot be listed.
    """
    return {
        path.removeprefix(_BEFORE).removesuffix(_AFTER): tag
        for path, tag in root.tags(SUMMARIES).items()
        if path.endswith(_AFTER)
    }


def _decode(texts: Iterable[str]) -> Iterable[ShardSummary]:
    for text in texts:
        try:
            yield decode_summary(text)
        except TableError:
            continue


def _read(root: Root, shard: str) -> str | None:
    """A summary's JSON; None if it was removed in the meantime."""
    try:
        return root.read(summary_path(shard)).decode(errors="replace")
    except FileNotFoundError:
        return None


def _read_merged(root: Root) -> dict[str, tuple[str, str]]:
    """Tag and JSON of each summary in the merged object, by shard; empty if it is missing or damaged."""
    try:
        table = pq.read_table(pa.BufferReader(root.read(MERGED)), columns=SCHEMA.names)
    except (FileNotFoundError, pa.ArrowException, OSError):  # Arrow reports some damage as a plain OSError
        return {}
    shards, tags, texts = (table[name].to_pylist() for name in SCHEMA.names)
    return dict(zip(shards, zip(tags, texts, strict=True), strict=True))
