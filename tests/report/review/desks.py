"""Review desks over small roots, and a server of a review."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from caption_assets.checks.stored_tables import StoredShard
from caption_assets.report.review.app import review_app
from caption_assets.report.review.desk import ReviewDesk
from caption_assets.report.review.rows import ReviewRow, read_rows
from caption_assets.report.server import listen, serving
from caption_assets.store.root import Root
from tests.report.windows import SHARD

TOKEN = "the-token"


def rows_of(root: Root, *shards: str, stages: Sequence[str] = ()) -> list[ReviewRow]:
    rows: list[ReviewRow] = []
    for shard in shards or (SHARD,):
        rows += read_rows(StoredShard(root, shard), stages, len(rows))
    return rows


def desk_of(root: Root, *shards: str, reviewer: str = "ann", stages: Sequence[str] = ()) -> ReviewDesk:
    """A desk that sees others' decisions at once."""
    return ReviewDesk(root, rows_of(root, *shards, stages=stages), reviewer, refresh_seconds=0)


@dataclass(frozen=True, slots=True)
class Served:
    """A review's server."""

    url: str
    """Address of the page, without token."""

    @property
    def address(self) -> str:
        """Address of the page with its token."""
        return f"{self.url}/?token={TOKEN}"


@contextmanager
def served_review(desk: ReviewDesk, source: Root, port: int = 0) -> Iterator[Served]:
    """Serve a review on loopback."""
    app = review_app(desk, source, TOKEN)
    with listen("127.0.0.1", port) as listener, serving(app, listener):
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}")
