"""The web application of a review: the page, its rows, the clips, and decisions, which are stored at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from caption_assets.errors import CaptionAssetsError
from caption_assets.report.page import render_application
from caption_assets.report.review.desk import DecisionError, ReviewDesk, UnknownRow, Verdict
from caption_assets.report.review.guard import Guard
from caption_assets.report.review.query import Order, QueryError, ReviewQuery
from caption_assets.report.review.row_json import correction_json, diff_json, progress_json, row_json
from caption_assets.report.review.rows import ReviewRow, RowId, State
from caption_assets.report.review.video import clip_response
from caption_assets.report.server import HEADERS, LOOPBACK
from caption_assets.report.sides import stage_heading
from caption_assets.store.corrections import CorrectionError, Decision
from caption_assets.store.failure import StoreError
from caption_assets.store.root import Root
from caption_assets.store.tables import Status

PAGE = 50
"""Number of rows in a response: each has the texts of all stages."""
MAX_BODY_BYTES = 1 << 20
"""Maximum size of a request with a decision, in bytes."""
NO_STORE = {**HEADERS, "Cache-Control": "no-store"}
SCRIPTS = ("elements.js", "review_player.js", "review_saves.js", "review.js")
_STATUS = {QueryError: 400, DecisionError: 422, CorrectionError: 422, UnknownRow: 404, StoreError: 502}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _DecisionBody(_Body):
    """A decision as the page sends it."""

    id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    row: str
    decision: Decision
    caption: str | None = None
    reason: Annotated[str, Field(max_length=2000)] | None = None
    undoes: str | None = None
    seen: str | None = None


class _DiffBody(_Body):
    """Two texts to compare."""

    old: str
    new: str


B = TypeVar("B", bound=_Body)


def review_app(desk: ReviewDesk, source: Root, token: str, hosts: Sequence[str] = ()) -> Starlette:
    """Build the web application.

    Args:
        desk: the captions under review.
        source: the folder of shards, for their clips.
        token: what a browser must know to use it.
        hosts: names under which it is reached, in addition to those of loopback.
    """
    pages = _Pages(desk, source)
    routes = [
        Route("/", pages.page),
        Route("/api/session", pages.session),
        Route("/api/rows", pages.rows),
        Route("/api/changes", pages.changes),
        Route("/api/corrections", pages.decide, methods=["POST"]),
        Route("/api/diff", pages.diff, methods=["POST"]),
        Route("/api/video/{shard}/{window_id}", pages.video),
        Route("/api/preview/{shard}/{window_id}", pages.preview),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=sorted({*LOOPBACK, *hosts}), www_redirect=False),
            Middleware(Guard, token=token),
        ],
        exception_handlers={CaptionAssetsError: _failed, HTTPException: _refused},
    )
    app.router.redirect_slashes = False
    return app


async def _failed(_: Request, error: Exception) -> Response:
    statuses = (status for kind, status in _STATUS.items() if isinstance(error, kind))
    return JSONResponse({"error": str(error)}, status_code=next(statuses, 500), headers=NO_STORE)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # it is registered for this type
    return JSONResponse(
        {"error": error.detail}, status_code=error.status_code, headers={**NO_STORE, **(error.headers or {})}
    )


class _Pages:
    """The endpoints over one desk. Starlette calls those that are not ``async`` in threads."""

    def __init__(self, desk: ReviewDesk, source: Root) -> None:
        self._desk = desk
        self._source = source

    def page(self, request: Request) -> Response:
        """The page without any data: it needs no token."""
        html = render_application("review.html", ("page.css", "review.css"), SCRIPTS)
        headers = {**NO_STORE, "Cross-Origin-Opener-Policy": "same-origin"}
        return HTMLResponse(html, headers=headers)

    def session(self, request: Request) -> Response:
        """What is under review, for the page's filters."""
        rows = self._desk.rows
        address = self._desk.root.address("")
        return JSONResponse(
            {
                "root": address,
                "root_id": sha256(address.encode()).hexdigest()[:16],
                "reviewer": self._desk.reviewer,
                "shards": _options(Counter(row.shard for row in rows)),
                "stages": [
                    (stage, f"{stage_heading(stage)} ({count:,})")
                    for stage, count in Counter(row.stage for row in rows).items()
                ],
                "flags": _options(Counter(flag for row in rows for flag in row.caption.flags)),
                "statuses": list(Status),
                "states": list(State),
                "orders": list(Order),
                "has_scores": any(row.score is not None for row in rows),
            },
            headers=NO_STORE,
        )

    def rows(self, request: Request) -> Response:
        """A page of the rows that a query finds: around a row, after it, before it, or the first ones."""
        parameters = request.query_params
        query = ReviewQuery.parse(parameters)
        self._desk.refresh()
        serial = self._desk.serial  # read first: a change in between is reported twice rather than never
        selection = self._desk.select(query)
        if after := parameters.get("after"):
            start = selection.start_after(_row_id(after))
        elif before := parameters.get("before"):
            start = max(selection.start_at(_row_id(before)) - PAGE, 0)
        elif at := parameters.get("at"):
            start = selection.start_at(_row_id(at)) // PAGE * PAGE
        else:
            start = 0
        found = selection.found[start : start + PAGE]
        return JSONResponse(
            {
                "rows": [row_json(self._desk, row) for row in found],
                "first": start,
                "found": len(selection.found),
                "progress": progress_json(selection),
                "serial": serial,
            },
            headers=NO_STORE,
        )

    def changes(self, request: Request) -> Response:
        """The rows with decisions since an earlier response, and the progress."""
        parameters = request.query_params
        query = ReviewQuery.parse(parameters)
        since = parameters.get("since", "0")
        if not (since.isascii() and since.isdecimal() and len(since) < 12):
            raise QueryError(f"invalid since={since!r}: give the serial of an earlier response")
        self._desk.refresh()
        serial = self._desk.serial
        changed = self._desk.changed_since(int(since))
        progress = progress_json(self._desk.select(query)) if changed else None
        rows = [row_json(self._desk, row) for row in changed[-10 * PAGE :]]
        return JSONResponse({"rows": rows, "progress": progress, "serial": serial}, headers=NO_STORE)

    async def decide(self, request: Request) -> Response:
        """Store a decision."""
        body = _parse(_DecisionBody, await _read_body(request))
        verdict = Verdict(
            body.id, _row_id(body.row), body.decision, body.caption, body.reason or None, body.undoes, body.seen
        )
        saved = await run_in_threadpool(self._desk.decide, verdict)
        meanwhile = saved.meanwhile and correction_json(saved.row, saved.meanwhile)
        return JSONResponse({"row": row_json(self._desk, saved.row), "meanwhile": meanwhile}, headers=NO_STORE)

    async def diff(self, request: Request) -> Response:
        """The difference of two texts, for the editor."""
        body = _parse(_DiffBody, await _read_body(request))
        return JSONResponse(await run_in_threadpool(diff_json, body.old, body.new), headers=NO_STORE)

    def video(self, request: Request) -> Response:
        """The clip of a window."""
        return clip_response(request, self._source, self._row(request).window)

    def preview(self, request: Request) -> Response:
        """The preview of a window."""
        found = self._row(request).preview
        if found is None:
            raise HTTPException(404, "the window has no preview", HEADERS)
        try:
            data = self._desk.root.read(found[0])
        except FileNotFoundError:
            raise HTTPException(404, "the preview was removed", HEADERS) from None
        headers = {**HEADERS, "Cache-Control": "private, max-age=3600", "Content-Type": "image/jpeg"}
        return Response(data, headers=headers)

    def _row(self, request: Request) -> ReviewRow:
        """A row of the window in the path."""
        rows = self._desk.stages_of(request.path_params["shard"], request.path_params["window_id"])
        if not rows:
            raise HTTPException(404, "the window is not under review", HEADERS)
        return rows[0]


def _options(counts: Counter[str]) -> list[tuple[str, str]]:
    """Values with their labels, for a list of options."""
    return [(value, f"{value.replace('_', ' ')} ({count:,})") for value, count in counts.most_common()]


def _row_id(text: str) -> RowId:
    """The row of an id as the page has it."""
    parts = text.split("/")
    if len(parts) != 3:
        raise UnknownRow(f"invalid row {text!r}: reload the page")
    return parts[0], parts[1], parts[2]


async def _read_body(request: Request) -> bytes:
    """The body of a request, at most ``MAX_BODY_BYTES``."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the text is too long: the limit is {MAX_BODY_BYTES:,} bytes", HEADERS)
    return bytes(body)


def _parse(kind: type[B], body: bytes) -> B:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first: Any = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "body"
        raise HTTPException(422, f"invalid request ({place}: {first['msg']})", HEADERS) from None
