"""The demo: the whole chain on the sample shards, for `make demo`.

It takes a user's steps: it writes shards into the source, registers them, and materializes the chain for each with
`dagster asset materialize`. Then it reads the published tables and compares them with what the clips show.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid

from caption_assets.captioning.recipe_file import STAGE1, STAGE2, TABLE_NAMES
from caption_assets.sample.shards import SEEDS, TRUTH, write_shards
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, read_captions, table_path
from scripts.child import child
from scripts.dev import DATA, STATE

ROOT = Path(__file__).resolve().parent.parent
LOG = DATA / "demo.log"
STARTED = time.monotonic()
CHAIN = "clip_manifest,stage1_captions,stage2_captions"


def main() -> int:
    """Run the demo and return the exit status."""
    DATA.mkdir(exist_ok=True)
    STATE.mkdir(parents=True, exist_ok=True)
    LOG.unlink(missing_ok=True)
    say("writing the sample shards")
    write_shards(DATA / "shards")
    say("registering the shards, verifying and mirroring the model's weights")
    materialize("shard_index,model_weights")
    for shard in SEEDS:
        say(f"{shard}: manifest, stage-1 and stage-2 captions on one vLLM engine")
        materialize(CHAIN, "--partition", shard)
    wrong = report(Root.open(str(DATA)))
    say(f"done; `make dev` shows it in the UI; the complete log is {LOG.relative_to(ROOT)}")
    return 1 if wrong else 0


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"demo: {time.monotonic() - STARTED:4.0f} s  {text}", flush=True)


def materialize(selection: str, *options: str) -> None:
    """Run `dagster asset materialize` with the demo's settings. Print its progress, and all its output on failure."""
    command = ["-m", "dagster", "asset", "materialize", "-m", "caption_assets.definitions", "--select", selection]
    settings = {name: value for name, value in os.environ.items() if not name.startswith("CAPTION_")}
    environment = {**settings, "DAGSTER_HOME": str(ROOT), "CAPTION_ROOT": str(DATA)}
    lines = []
    with LOG.open("a") as log:
        full = [sys.executable, "-W", "ignore", *command, *options]
        with child(full, cwd=STATE, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                log.write(line)
                if " - dagster - INFO - " in line:
                    say("  " + line.rsplit(" - ", 1)[-1].strip())
    if process.returncode != 0:
        print("".join(lines), file=sys.stderr)
        raise SystemExit(f"demo: `dagster {' '.join(command[2:])} {' '.join(options)}` failed; its output is above")


def report(root: Root) -> int:
    """Print the captions and the tables' paths, and return the number of rows with a wrong caption."""
    truth = json.loads((DATA / TRUTH).read_text())
    grid = Grid("shard", "clip", "window", "stage 1", "stage 2", "right", title="What the clips show", show_lines=False)
    wrong = 0
    for shard in SEEDS:
        tables = (read_captions(root, table, shard) for table in (STAGE1.name, STAGE2.name))
        for first, second in zip(*tables, strict=True):
            right = is_right(truth[shard][first.clip_key], first, second)
            wrong += not right
            window = "" if first.window_index is None else str(first.window_index)
            caption = first.caption or f"{first.status}: {first.error}"
            grid.add_row(shard, first.clip_key, window, caption, second.caption or "", "yes" if right else "NO")
    Console(width=max(Console().width, 150)).print(grid)
    print("Outputs (Parquet, partitioned by shard):")
    for table in TABLE_NAMES:
        for shard in SEEDS:
            print(f"  {DATA.name}/{table_path(table, shard)}")
    return wrong


def is_right(expected: list[list[str]], first: CaptionRow, second: CaptionRow) -> bool:
    """Whether both captions are right. A broken clip is right if it has no caption and an error."""
    if first.window_index is None:
        return not expected and first.caption is None and bool(first.error)
    return [first.caption, second.caption] == expected[first.window_index]


if __name__ == "__main__":
    sys.exit(main())
