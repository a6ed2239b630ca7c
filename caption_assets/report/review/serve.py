"""The start of a review: reads the captions of shards, and serves their page until Ctrl-C."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Thread
from urllib.parse import urlencode

from caption_assets.checks.stored_tables import StoredShard
from caption_assets.errors import CaptionAssetsError, number_of
from caption_assets.report.review.app import review_app
from caption_assets.report.review.desk import ReviewDesk
from caption_assets.report.review.guard import TOKEN, new_token
from caption_assets.report.review.rows import Kind, ReviewRow, read_rows
from caption_assets.report.server import listen, serve, served_hosts
from caption_assets.report.terminal import require_shards, unknown_name
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, Status, stored_shards

MAX_ROWS = 200_000
"""Maximum number of captions in a review. They are in memory, about 3 KB each."""
ALL_STAGES = "all"


class ReviewError(CaptionAssetsError):
    """A review that cannot be opened."""


@dataclass(frozen=True, slots=True)
class FirstQuery:
    """The query with which the page opens."""

    stage: str | None = None
    """Name of a stage, or ``all``; None for the last stage with text."""
    order: str = "manifest"
    sample: int | None = None
    seed: int = 0

    def parameters(self, rows: Sequence[ReviewRow], stages: Sequence[str]) -> dict[str, str]:
        """The query as parameters of a URL, without its defaults.

        Args:
            rows: the captions under review.
            stages: names of the recipe's stages, in order.

        Raises:
            ReviewError: if there is no such stage.
        """
        kinds = {row.stage: row.kind for row in rows}
        known = [*(name for name in stages if name in kinds), *(name for name in kinds if name not in stages)]
        if self.stage not in (None, ALL_STAGES, *known):
            what = f"there are no captions of stage {self.stage!r}"
            raise ReviewError(unknown_name(what, str(self.stage), known))
        texts = [name for name in known if kinds[name] is Kind.TEXT]
        stage = self.stage or (texts or known)[-1]
        found = {
            "stage": "" if stage == ALL_STAGES else stage,
            "order": "" if self.order == "manifest" else self.order,
            "sample": str(self.sample or ""),
            "seed": str(self.seed or ""),
        }
        return {name: value for name, value in found.items() if value}


def serve_review(
    root: Root,
    source: Root,
    stages: Sequence[str],
    shards: Sequence[str] | None,
    query: FirstQuery,
    *,
    reviewer: str,
    host: str,
    port: int,
    open_browser: bool,
) -> None:
    """Serve a review until Ctrl-C, and print its address.

    Args:
        root: the root.
        source: the folder of shards.
        stages: names of the recipe's stages, in order.
        shards: keys of the shards; None for all that have a manifest.
        query: the query with which the page opens.
        reviewer: name of the person.
        host: address to listen on.
        port: port to listen on.
        open_browser: whether to open the page.

    Raises:
        ReviewError: if there are no captions, or too many.
        TableError: if a shard is unknown, or a table is damaged.
        StoreError: if the root cannot be read.
        ServerError: if the address cannot be listened on.
    """
    with listen(host, port, "stop it, or give another --port") as listener:
        rows = read_shards(root, shards, stages)
        parameters = query.parameters(rows, stages)
        token = new_token()
        shown = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
        address = f"http://{shown}:{port}/?{urlencode({TOKEN: token, **parameters})}"
        app = review_app(ReviewDesk(root, rows, reviewer), source, token, served_hosts(host, None))
        print(f"Review of {root.url} as {reviewer}, until Ctrl-C: {address}", flush=True)
        if open_browser:
            # In a thread, because a browser in the terminal returns when it ends. Its request waits for the server.
            Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        serve(app, listener)


def read_shards(root: Root, shards: Sequence[str] | None, stages: Sequence[str]) -> list[ReviewRow]:
    """The captions of shards. Standard error has their numbers.

    Args:
        root: the root.
        shards: keys of the shards; None for all that have a manifest.
        stages: names of the recipe's stages, in order.

    Raises:
        ReviewError: if there are no captions, or more than ``MAX_ROWS``.
        TableError: if a shard is unknown, or a table is damaged.
        StoreError: if the root cannot be read.
    """
    known = stored_shards(root, CLIP_MANIFEST)
    require_shards(root, shards or (), known)
    rows: list[ReviewRow] = []
    for shard in dict.fromkeys(shards or sorted(known)):
        stored = StoredShard(root, shard)
        found = read_rows(stored, stages, len(rows))
        rows += found
        _print_counts(stored, found)
        if len(rows) > MAX_ROWS:
            raise ReviewError(f"there are more than {MAX_ROWS:,} captions: name fewer shards")
    if not rows:
        raise ReviewError(
            f"{root.url} has no captions: caption shards first (`caption-assets run`), or check CAPTION_ROOT"
        )
    return rows


def _print_counts(stored: StoredShard, found: Sequence[ReviewRow]) -> None:
    windows = len({row.window.window_id for row in found})
    unreadable = sum(row.status is Status.FAILED for row in stored.manifest)
    message = f"{stored.shard}: {number_of(len(found), 'caption')} of {number_of(windows, 'window')}"
    if unreadable:
        message += f", without {number_of(unreadable, 'unreadable clip')}"
    print(message, file=sys.stderr, flush=True)
