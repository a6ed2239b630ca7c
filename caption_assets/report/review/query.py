"""The query of a review: filters, order and sample, as they stand in the page's URL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from hashlib import blake2b
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from caption_assets.errors import CaptionAssetsError
from caption_assets.report.review.rows import ReviewRow, RowId, State
from caption_assets.store.tables import Status

OPEN_STATES = (State.UNDECIDED, State.OUTDATED)
"""States of captions that still need a decision."""


class QueryError(CaptionAssetsError):
    """A query that cannot be parsed."""


class Order(StrEnum):
    """Orders of the captions under review."""

    MANIFEST = "manifest"
    WORST = "worst"
    """Failed captions, then those with flags, then the lowest scores."""
    RANDOM = "random"
    """A shuffle, the same for each use of a seed."""
    SCORE = "score"
    FLAGS = "flags"
    SHORTEST = "shortest"
    LONGEST = "longest"
    STATUS = "status"
    STAGE = "stage"
    CORRECTION = "correction"


@dataclass(frozen=True, slots=True)
class ReviewQuery:
    """Filters, order and sample. A filter that is None, or an empty search, takes every row."""

    search: str = ""
    """Words that the caption or the clip's name contains, in any case and order."""
    shard: str | None = None
    stage: str | None = None
    status: Status | None = None
    flag: str | None = None
    score_below: Annotated[float, Field(ge=0, le=1)] | None = None
    """Rows with a score below it."""
    min_words: Annotated[int, Field(ge=0)] | None = None
    max_words: Annotated[int, Field(ge=0)] | None = None
    correction: State | Literal["open"] | None = None
    """A state; ``open`` for captions that need a decision."""
    order: Order = Order.MANIFEST
    sample: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of rows, the first ones in the order. Search and correction filter within the sample, so that
    the sample stays the same while it is reviewed."""
    seed: int = 0
    """Seed of the random order."""

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> ReviewQuery:
        """Parse the parameters of a URL. Empty and other parameters are ignored.

        Raises:
            QueryError: if a value is invalid.
        """
        known = {field.name for field in fields(cls)}
        given = {name: value for name, value in parameters.items() if name in known and value.strip()}
        try:
            return _ADAPTER.validate_python(given)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            raise QueryError(f"invalid {name}={given[name]!r}: {first['msg']}") from error

    def takes(self, row: ReviewRow) -> bool:
        """Whether a row passes the filters that do not depend on people: all but search and correction."""
        return (
            self.shard in (None, row.shard)
            and self.stage in (None, row.stage)
            and self.status in (None, row.caption.status)
            and (self.flag is None or self.flag in row.caption.flags)
            and (self.score_below is None or (row.score is not None and row.score < self.score_below))
            and (self.min_words is None or row.words >= self.min_words)
            and (self.max_words is None or row.words <= self.max_words)
        )

    def finds(self, row: ReviewRow, state: State) -> bool:
        """Whether a row passes search and the filter of corrections."""
        if self.correction == "open":
            if state not in OPEN_STATES:
                return False
        elif self.correction not in (None, state):
            return False
        words = self.search.lower().split()
        text = f"{row.window.clip_key} {row.caption.caption or row.caption.error or ''}".lower() if words else ""
        return all(word in text for word in words)


_ADAPTER = TypeAdapter(ReviewQuery)


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows that a query finds."""

    sample: Sequence[ReviewRow]
    """The rows before search and the filter of corrections, in order."""
    found: Sequence[ReviewRow]
    states: Mapping[State, int]
    """Number of rows of the sample in each state."""

    def start_after(self, row: RowId) -> int:
        """Position, among those found, of the first row after a row of the sample, which need not be found itself."""
        return self._count(row, lambda place, cursor: place <= cursor)

    def start_at(self, row: RowId) -> int:
        """Position, among those found, of a row of the sample, or of the next one if it is not found."""
        return self._count(row, lambda place, cursor: place < cursor)

    def _count(self, row: RowId, is_before: Callable[[int, int], bool]) -> int:
        places = {one.id: place for place, one in enumerate(self.sample)}
        cursor = places.get(row, -1)
        return sum(is_before(places[one.id], cursor) for one in self.found)


def select(rows: Iterable[ReviewRow], query: ReviewQuery, state_of: Callable[[ReviewRow], State]) -> Selection:
    """Select the rows that a query finds, in its order.

    Args:
        rows: all rows under review.
        query: the query.
        state_of: the present state of a row.
    """
    taken = sorted(filter(query.takes, rows), key=_key(query, state_of))[: query.sample]
    states = {row.id: state_of(row) for row in taken}
    found = [row for row in taken if query.finds(row, states[row.id])]
    return Selection(taken, found, Counter(states.values()))


def _key(query: ReviewQuery, state_of: Callable[[ReviewRow], State]) -> Callable[[ReviewRow], tuple[Any, ...]]:
    """The key by which an order sorts. Rows without a score come after those with one."""
    positions = {state: place for place, state in enumerate(State)}
    keys: dict[Order, Callable[[ReviewRow], tuple[Any, ...]]] = {
        Order.MANIFEST: lambda row: (),
        Order.WORST: lambda row: (row.caption.status is Status.OK, -len(row.caption.flags), *_score(row)),
        Order.RANDOM: lambda row: (blake2b("\n".join((str(query.seed), *row.id)).encode(), digest_size=8).digest(),),
        Order.SCORE: _score,
        Order.FLAGS: lambda row: (-len(row.caption.flags), tuple(row.caption.flags)),
        Order.SHORTEST: lambda row: (row.words,),
        Order.LONGEST: lambda row: (-row.words,),
        Order.STATUS: lambda row: (row.caption.status is Status.OK, row.caption.error_kind or ""),
        Order.STAGE: lambda row: (row.stage,),
        Order.CORRECTION: lambda row: (positions[state_of(row)],),
    }
    key = keys[query.order]
    return lambda row: (*key(row), row.number)


def _score(row: ReviewRow) -> tuple[bool, float]:
    return row.score is None, row.score or 0.0
