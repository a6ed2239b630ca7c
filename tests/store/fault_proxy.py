"""A proxy on loopback between a client and a store's server, with injected faults."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from types import TracebackType
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 60
"""Maximum duration of a request or a stall."""
OWN_HEADERS = ("connection", "content-length", "keep-alive", "transfer-encoding")
"""Headers of a response that are not forwarded, because the proxy frames the body itself."""


class Breakdown(StrEnum):
    """A connection failure."""

    LOST = "reset"
    """The connection is reset before the request reaches the server."""
    NO_RESPONSE = "reset after processing"
    """The connection is reset after the server has processed the request."""
    STALL = "stall"
    """No response, not even ``100 Continue``; the connection stays open."""
    STALLED_BODY = "stall in the body"
    """Half of the response's body (nothing of one without a body); the connection stays open."""
    CUT = "cut body"
    """Half of the response's body (nothing of one without a body); the connection closes."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error response of the proxy itself."""

    status: int
    code: str
    """S3's error code, such as ``SlowDown``."""
    date: str | None = None
    """The response's ``Date``."""
    region: str | None = None
    """The bucket's region, as in Amazon's responses."""
    text: str | None = None
    """The response's body in place of an error."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as the store receives it."""

    method: str
    target: str
    """Path and query."""
    headers: Mapping[str, str]
    """Values by lower-case name."""
    body: bytes


Rule = Callable[[Request], "Refusal | None"]
"""Returns a refusal for the requests that a store rejects."""


Fault = Breakdown | Refusal
FAULTS: Sequence[Fault] = (Refusal(500, "InternalError"), Refusal(503, "SlowDown"), *Breakdown)
"""Faults that every request must survive."""


def random_faults(fraction: float, seed: int) -> Iterator[Fault | None]:
    """A random fault for a fraction of the requests, all equally likely; reproducible by the seed."""
    random = Random(seed)
    while True:
        yield random.choice(FAULTS) if random.random() < fraction else None


class FaultProxy:
    """Forwards requests to a server, with a planned fault for each; runs within its block.

    Args:
        server: the server's URL.
        plan: the fault of each request in the order of arrival; None, and its end, for no fault.
        without: a header that is removed from each request, as if the store did not support it.
        rule: rejects requests for which the plan has no fault.
    """

    def __init__(
        self, server: str, plan: Iterable[Fault | None] = (), *, without: str = "", rule: Rule = lambda request: None
    ) -> None:
        address = urlsplit(server)
        self.upstream = (str(address.hostname), int(address.port or 80))
        self.without = without
        self.rule = rule
        self.received: list[Request] = []
        """Complete requests, in the order of arrival."""
        self.requests: Counter[Fault | None] = Counter()
        """Number of requests by fault, with None for no fault."""
        self.stopped = threading.Event()
        """Ends all stalls."""
        self._plan = iter(plan)
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.proxy = self
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def next_fault(self) -> Fault | None:
        """The fault of the request that has just arrived."""
        with self._lock:
            fault = next(self._plan, None)
            self.requests[fault] += 1
        return fault

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._http.shutdown()
        self._http.server_close()


class _Server(ThreadingHTTPServer):
    proxy: FaultProxy
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors: clients of this proxy disconnect during requests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_one_request(self) -> None:
        """Handle a request of any method."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline:
            self.close_connection = True
            return
        fault = self.server.proxy.next_fault()
        if fault is Breakdown.STALL:
            self._stall()
        elif self.parse_request():  # sends 100 Continue if requested
            self._handle(fault)

    def _handle(self, fault: Fault | None) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, body)
        self.server.proxy.received.append(request)
        if isinstance(fault, Refusal):
            self._refuse(fault)
        elif fault is None and (refusal := self.server.proxy.rule(request)):
            self._refuse(refusal)
        elif fault is Breakdown.LOST:
            self._reset()
        else:
            self._forward(body, fault)

    def _forward(self, body: bytes, fault: Breakdown | None) -> None:
        removed = ("expect", self.server.proxy.without.lower())
        headers = {name: value for name, value in self.headers.items() if name.lower() not in removed}
        with closing(HTTPConnection(*self.server.proxy.upstream, timeout=TIMEOUT_SECONDS)) as upstream:
            upstream.request(self.command, self.path, body, headers)
            response = upstream.getresponse()
            data = response.read()
        if fault is Breakdown.NO_RESPONSE:
            self._reset()
            return
        if fault is None or data:
            self.send_response_only(response.status, response.reason)
            for name, value in response.getheaders():
                if name.lower() not in OWN_HEADERS:
                    self.send_header(name, value)
            length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(data if fault is None else data[: len(data) // 2])
        if fault is Breakdown.STALLED_BODY:
            self._stall()
        elif fault is Breakdown.CUT:
            self.close_connection = True

    def _refuse(self, refusal: Refusal) -> None:
        region = f"<Region>{refusal.region}</Region>" if refusal.region else ""
        error = f"<Error><Code>{refusal.code}</Code><Message>No.</Message>{region}</Error>"
        text = f"<?xml version='1.0' encoding='UTF-8'?>{error}"
        data = b"" if self.command == "HEAD" else (refusal.text or text).encode()
        self.send_response_only(refusal.status)
        if refusal.date:
            self.send_header("Date", refusal.date)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stall(self) -> None:
        self.close_connection = True
        self.server.proxy.stopped.wait(TIMEOUT_SECONDS)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
