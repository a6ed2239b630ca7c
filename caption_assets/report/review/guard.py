"""The guard of the review's server: who may call its API.

A server on loopback is reachable by every page in the same browser. So a request to the API needs the token of this
start, which a cookie has that scripts cannot read, and one that writes needs the server's own origin, which browsers
add and pages cannot change.
"""

from __future__ import annotations

import secrets

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from caption_assets.report.server import HEADERS

API = "/api/"
TOKEN = "token"
"""Name of the token's parameter in the address that the command prints."""
JSON = "application/json"


def new_token() -> str:
    """A random token."""
    return secrets.token_urlsafe(24)


class Guard:
    """ASGI middleware that refuses requests to the API without token, and writes from another origin.

    Args:
        app: the application.
        token: the token of this start.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        response = self._response(Request(scope)) if scope["type"] == "http" else None
        await (response or self._app)(scope, receive, send)

    def _response(self, request: Request) -> Response | None:
        if request.url.path == "/" and TOKEN in request.query_params:
            return self._sign_in(request)
        if not request.url.path.startswith(API):
            return None
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return _refuse(403, "the request comes from another site")
        if not self._is_token(request.cookies.get(_cookie(request), "")):
            return _refuse(401, "open the address that `caption-assets review` printed when it started")
        if request.method in ("GET", "HEAD"):
            return None
        if request.headers.get("origin") != f"{request.url.scheme}://{request.headers.get('host')}":
            return _refuse(403, "the request does not come from the review's own page")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
            return _refuse(415, f"the content type is not {JSON}")
        return None

    def _sign_in(self, request: Request) -> Response:
        """Move the token from the address to a cookie, so that it is neither in the history nor in copied links."""
        others = request.url.remove_query_params(TOKEN)
        target = f"/?{others.query}" if others.query else "/"
        response = RedirectResponse(target, status_code=303, headers={**HEADERS, "Cache-Control": "no-store"})
        if self._is_token(token := request.query_params[TOKEN]):
            response.set_cookie(_cookie(request), token, httponly=True, samesite="strict")
        return response

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode(), self._token.encode())


def _cookie(request: Request) -> str:
    """Name of the cookie. Browsers send cookies to all ports of a host, so it names the port."""
    _, port = request.scope["server"]
    return f"review-{port}"


def _refuse(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status_code=status, headers={**HEADERS, "Cache-Control": "no-store"})
