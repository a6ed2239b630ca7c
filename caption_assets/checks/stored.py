"""A shard's caption tables as they are stored, read to be looked at."""

from __future__ import annotations

from collections.abc import Sequence

from caption_assets.captioning.stages import STAGE1
from caption_assets.checks.findings import Looked, Said, said
from caption_assets.store.root import Root
from caption_assets.store.tables import read_captions, read_manifest, read_schema


def read_stored(root: Root, shard: str, last: str) -> dict[str, Looked]:
    """Read a shard's caption tables up to ``last``, stage 1 first.

    Raises:
        TableError: if one of them or the manifest is not there, or cannot be used.
        StoreError: if the root cannot be read.
    """
    manifest = read_manifest(root, shard)
    found: dict[str, Looked] = {}
    stage1: Sequence[Said] = ()
    for table in sorted({STAGE1.name, last}):
        rows = read_captions(root, table, shard)
        captions = said(rows)
        found[table] = Looked(table, read_schema(root, table, shard), rows, captions, manifest, stage1)
        stage1 = captions
    return found
