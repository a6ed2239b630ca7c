"""A read-only web server of a root's galleries. Links to them are stored, so it has a fixed address.

It serves ``/gallery/`` (the dashboard and its search), the pages and previews below it, and the tables
``clip_manifest``, which Dagster's UI links to. Other paths of the root are not found. Requests must name a known host,
so that a stranger's web page cannot read galleries through a name that resolves to this machine (DNS rebinding).
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from caption_assets.errors import CaptionAssetsError
from caption_assets.report.caption_search import CaptionSearch, SearchError
from caption_assets.report.dashboard import PAGE, render_dashboard
from caption_assets.report.gallery import gallery_path
from caption_assets.report.ports import occupant
from caption_assets.sources.shard import KEY_PATTERN
from caption_assets.store.failure import StoreError, translate_store_errors
from caption_assets.store.previews import GALLERY, preview_folder
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, table_path

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
REVALIDATE = "no-cache"
"""Cache-Control of what a later run may replace."""
ONE_DAY = "private, max-age=86400"
"""Cache-Control of previews. Their names change with the clip."""
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".parquet": "application/vnd.apache.parquet",
}
"""Content types of what is served. A preview of another type is not found."""
SHUTDOWN_SECONDS = 2
"""Time for responses in progress when the server ends, in seconds."""
STREAM_BYTES = 4 << 20
"""Size of a read from object storage."""


class ServerError(CaptionAssetsError):
    """The server cannot listen at its address."""


def gallery_app(root: Root, stages: Sequence[str], hosts: Sequence[str] = ()) -> Starlette:
    """Build the web application.

    Args:
        root: the root.
        stages: names of the recipe's stages, for the search.
        hosts: names under which it is reached, in addition to those of loopback.
    """
    pages = _Pages(root, stages)
    routes = [
        Route("/", lambda request: RedirectResponse("gallery/")),
        Route("/gallery", lambda request: RedirectResponse("gallery/")),
        Route("/gallery/", pages.dashboard),
        Route("/gallery/index.html", lambda request: RedirectResponse("./")),
        Route("/gallery/search", pages.search),
        Route("/gallery/{shard}", lambda request: RedirectResponse(f"{_shard(request)}/index.html")),
        Route("/gallery/{shard}/", lambda request: RedirectResponse("index.html")),
        Route("/gallery/{shard}/index.html", pages.gallery),
        Route("/gallery/{shard}/previews/{name}", pages.preview),
        Route(f"/{table_path(CLIP_MANIFEST, '{shard}')}", pages.manifest),
        Route("/health", lambda request: PlainTextResponse("ok")),
    ]
    known = sorted({*LOOPBACK, *hosts})
    app = Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=known, www_redirect=False)],
        exception_handlers={StoreError: _store_failed},
    )
    app.router.redirect_slashes = False
    return app


@contextmanager
def serving(app: Starlette, listener: socket.socket) -> Iterator[None]:
    """Serve in a thread within the block."""
    server = uvicorn.Server(_config(app))
    thread = threading.Thread(target=server.run, args=([listener],), name="gallery", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def serve(app: Starlette, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM."""
    uvicorn.Server(_config(app)).run([listener])


def listen(host: str, port: int, remedy: str | None = None) -> socket.socket:
    """Open a listening socket; port 0 takes any free port.

    Args:
        host: name or address of this machine.
        port: the port.
        remedy: what to do if the port is in use; None for a server of galleries.

    Raises:
        ServerError: if the address is in use or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # requests wait until the server runs
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            remedy = remedy or (
                "stop it, or serve the galleries on another port, as in "
                f"CAPTION_LINK_URL=http://127.0.0.1:{port + 1}, with which links begin from then on"
            )
            raise ServerError(f"port {port} of {host} is in use by {occupant(port)}: {remedy}") from error
        raise ServerError(f"cannot listen on port {port} of {host}: {error.strerror or error}") from error
    return listener


def served_hosts(host: str, link_url: str | None) -> list[str]:
    """The hosts that requests may name: the one that links begin with, and the one that is listened on."""
    linked = urlsplit(link_url).hostname if link_url else None
    return [f"[{name}]" if ":" in name else name for name in (host, linked) if name and name not in ("0.0.0.0", "::")]


def _config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


async def _store_failed(_: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", status_code=502, headers=HEADERS)


class _Pages:
    """The endpoints over one root."""

    def __init__(self, root: Root, stages: Sequence[str]) -> None:
        self._root = root
        self._search = CaptionSearch(root, stages)
        self._folders = {
            name: StaticFiles(directory=Path(root.full(name)), check_dir=False)
            for name in (GALLERY, CLIP_MANIFEST)
            if root.is_local
        }
        """The served folders of a local root. Links that lead out of them are not followed."""

    async def dashboard(self, request: Request) -> Response:
        """The dashboard. In a root of an earlier release it is rendered on each request."""
        try:
            return await self._file(request, PAGE, REVALIDATE)
        except HTTPException:
            html = await run_in_threadpool(render_dashboard, self._root)
            return HTMLResponse(html, headers={**HEADERS, "Cache-Control": REVALIDATE})

    async def search(self, request: Request) -> Response:
        """The captions with the words of the query ``q``."""
        try:
            found = await run_in_threadpool(self._search.find, request.query_params.get("q", ""))
        except SearchError as error:
            return PlainTextResponse(f"{error}\n", status_code=400, headers=HEADERS)
        return JSONResponse(asdict(found), headers={**HEADERS, "Cache-Control": "no-store"})

    async def gallery(self, request: Request) -> Response:
        """The page of a shard."""
        shard = _shard(request)
        try:
            return await self._file(request, gallery_path(shard), REVALIDATE)
        except HTTPException as error:
            remedy = f"write it with `caption-assets gallery {shard}`"
            raise HTTPException(error.status_code, f"shard {shard} has no gallery: {remedy}", HEADERS) from None

    async def preview(self, request: Request) -> Response:
        """A preview of a window."""
        name = request.path_params["name"]
        if name.startswith(".") or Path(name).suffix not in (".jpg", ".webp"):
            raise HTTPException(404, headers=HEADERS)
        return await self._file(request, f"{preview_folder(_shard(request))}/{name}", ONE_DAY)

    async def manifest(self, request: Request) -> Response:
        """The table ``clip_manifest`` of a shard."""
        return await self._file(request, table_path(CLIP_MANIFEST, _shard(request)), REVALIDATE)

    async def _file(self, request: Request, path: str, caching: str) -> Response:
        """The response with an object of the root."""
        headers = {**HEADERS, "Cache-Control": caching, "Content-Type": TYPES[Path(path).suffix]}
        if not self._root.is_local:
            return await run_in_threadpool(self._object, request, path, headers)
        folder, _, name = path.partition("/")
        try:
            response = await self._folders[folder].get_response(name, request.scope)
        except HTTPException:
            raise HTTPException(404, headers=HEADERS) from None
        response.headers.update(headers)
        return response

    def _object(self, request: Request, path: str, headers: Mapping[str, str]) -> Response:
        """The response with an object of object storage, which is streamed. It has no ranges."""
        try:
            with translate_store_errors(f"cannot read {self._root.address(path)}"):
                file: Any = self._root.fs.open(self._root.full(path), "rb", block_size=STREAM_BYTES)
        except FileNotFoundError:
            raise HTTPException(404, headers=HEADERS) from None
        tag = str(file.details.get("ETag", ""))
        headers = {**headers, "ETag": tag, "Content-Length": str(file.size)}
        if tag and tag in request.headers.get("if-none-match", ""):
            file.close()
            return Response(status_code=304, headers={name: headers[name] for name in ("ETag", "Cache-Control")})
        if request.method == "HEAD":
            file.close()
            return Response(headers=headers)
        return StreamingResponse(_pieces(file), headers=headers)


def _shard(request: Request) -> str:
    """The shard's key in the path."""
    shard: str = request.path_params["shard"]
    if not KEY_PATTERN.fullmatch(shard):
        raise HTTPException(404, headers=HEADERS)
    return shard


def _pieces(file: Any) -> Iterator[bytes]:
    with file:
        while piece := file.read(STREAM_BYTES):
            yield piece
