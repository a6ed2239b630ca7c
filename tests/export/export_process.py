"""A process that exports a shard as pairs with windows that are cut, for tests that kill it.

Its arguments are root, source and shard. It prints a line when the export begins.
"""

from __future__ import annotations

import sys

from caption_assets.export.config import Cut, CutConfig, ExportConfig, Format
from caption_assets.export.dataset_shard import export_shard
from caption_assets.store.root import Root
from tests.stages import GENERAL

PAIRS = ExportConfig(Format.PAIRS, file_bytes=1 << 30, graph=GENERAL, cut=CutConfig(Cut.EXACT))


def main(root: str, source: str, shard: str) -> None:
    """Export the shard."""
    print("begin", flush=True)
    export_shard(Root.open(root), Root.open(source), shard, PAIRS)


if __name__ == "__main__":
    main(*sys.argv[1:])
