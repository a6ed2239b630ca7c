"""The demo: the whole chain on the sample shards, for `make demo`.

It takes a user's steps: it writes shards into the source, registers them, and materializes the chain for each with
`dagster asset materialize`. The recipe is `sample`, the default of the bundled model. Then the demo reads the published
tables and compares all answers with what the clips show.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid

from caption_assets.captioning.output import ChoiceOutput, JsonOutput
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.stages import Stage
from caption_assets.commands.child import child
from caption_assets.sample.shards import ANSWERS, SEEDS, write_shards
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, CaptionRow, read_captions, table_path
from scripts.dev import DATA, demo_environment

ROOT = Path(__file__).resolve().parent.parent
LOG = DATA / "demo.log"
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d (.*)")
"""Pattern of the console's log lines."""
STARTED = time.monotonic()
STAGES = built_in("sample").stages
TABLES = (CLIP_MANIFEST, *(stage.name for stage in STAGES))


def main() -> int:
    """Run the demo and return the exit status."""
    DATA.mkdir(exist_ok=True)
    LOG.unlink(missing_ok=True)
    say("writing the sample shards")
    write_shards(DATA / "shards")
    say("registering the shards, verifying and mirroring the model's weights")
    materialize("shard_index,model_weights")
    for shard in SEEDS:
        say(f"{shard}: manifest, then {len(STAGES)} questions about each window on one vLLM engine")
        materialize(",".join(TABLES), "--partition", shard)
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
    environment = {**settings, **demo_environment()}
    lines = []
    with LOG.open("a") as log:
        full = [sys.executable, "-W", "ignore", *command, *options]
        with child(full, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                log.write(line)
                if message := LOG_LINE.match(line):
                    say(f"  {message[1]}")
    if process.returncode != 0:
        print("".join(lines), file=sys.stderr)
        raise SystemExit(f"demo: `dagster {' '.join(command[2:])} {' '.join(options)}` failed; its output is above")


def report(root: Root) -> int:
    """Print the answers and the tables' paths, and return the number of windows with a wrong answer."""
    expected = json.loads((DATA / ANSWERS).read_text())
    console = Console(width=max(Console().width, 150))
    wrong = 0
    for shard in SEEDS:
        grid = Grid("clip", "window", "right", *(stage.name for stage in STAGES), title=f"{shard}: what its clips show")
        tables = (read_captions(root, stage.name, shard) for stage in STAGES)
        for rows in zip(*tables, strict=True):
            first = rows[0]
            right = is_right(expected[shard][first.clip_key], rows)
            wrong += not right
            if first.window_index is None:
                window, cells = "", [f"{first.status}: {first.error}"]
            else:
                window = str(first.window_index)
                cells = [shown(stage, row) for stage, row in zip(STAGES, rows, strict=True)]
            grid.add_row(first.clip_key, window, "yes" if right else "NO", *cells)
        console.print(grid)
    print("Outputs (Parquet, partitioned by shard):")
    for table in TABLES:
        for shard in SEEDS:
            print(f"  {DATA.name}/{table_path(table, shard)}")
    return wrong


def is_right(windows: Sequence[Mapping[str, str]], rows: Sequence[CaptionRow]) -> bool:
    """Whether all answers about a window are right. A broken clip is right if it has no answers but errors."""
    index = rows[0].window_index
    if index is None:
        return not windows and all(row.caption is None and row.error for row in rows)
    return [row.caption for row in rows] == list(windows[index].values())


def shown(stage: Stage, row: CaptionRow) -> str:
    """A short form of an answer or error, for the table."""
    if row.caption is None:
        return f"{row.status}: {row.error}"
    match stage.output:
        case JsonOutput():
            return ", ".join(json.loads(row.caption).values())
        case ChoiceOutput():
            return f"{row.caption}, {(row.probabilities or {})[row.caption]:.3f}"
        case _:
            return row.caption


if __name__ == "__main__":
    sys.exit(main())
