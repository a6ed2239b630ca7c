"""A server on loopback that speaks the Hub's HTTP protocol, as far as its client asks for models."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

COMMIT = "c0ffee" + 34 * "0"
SIGNATURE = "s1gn4tur3-0f-th3-4ddr3ss"
"""Stands in the addresses that large files are redirected to, as a secret would."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A request for a file's bytes."""

    name: str
    begin: int
    """First byte that was asked for."""
    token: str | None


@dataclass
class Hub:
    """One model, and what is done wrong with it."""

    files: dict[str, bytes]
    large: frozenset[str]
    """Names of those that are redirected to another address, with their SHA-256 told."""
    faults: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By file, what befalls each of the next requests for its bytes: ``corrupt``, ``cut``, ``short`` or ``error``."""
    refusal: tuple[int, str] | None = None
    """Status and error code with which every question is answered."""
    seen: list[Seen] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve the hub while the block runs."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._route(with_body=False)

    def do_GET(self) -> None:
        self._route(with_body=True)

    def log_message(self, *args: object) -> None:
        pass

    def _route(self, *, with_body: bool) -> None:
        path = urlsplit(self.path).path
        if self.hub.refusal:
            status, code = self.hub.refusal
            self._answer(status, {"X-Error-Code": code, "X-Error-Message": "no"})
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/revision/[^/]+", path):
            revision = path.rpartition("/")[2]
            known = revision in (COMMIT, "main")
            self._info() if known else self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        elif found := re.fullmatch(r"/[^/]+/[^/]+/resolve/[^/]+/(.+)", path):
            self._resolve(found[1], with_body)
        else:
            name = path.removeprefix("/cdn/")
            self._bytes(name, with_body) if name in self.hub.files else self._answer(404, {})

    def _info(self) -> None:
        siblings = []
        for name, data in self.hub.files.items():
            one = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
            if name in self.hub.large:
                one["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(one)
        body = json.dumps({"id": "org/model", "sha": COMMIT, "siblings": siblings}).encode()
        self._answer(200, {"Content-Type": "application/json"}, body)

    def _resolve(self, name: str, with_body: bool) -> None:
        data = self.hub.files[name]
        if name in self.hub.large:
            etag = hashlib.sha256(data).hexdigest()
            linked = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
            there = {"Location": f"{self.hub.url}/cdn/{name}?X-Amz-Signature={SIGNATURE}"}
            self._answer(302, {"X-Repo-Commit": COMMIT, **linked, **there})
        else:
            self._bytes(name, with_body)

    def _bytes(self, name: str, with_body: bool) -> None:
        data = self.hub.files[name]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(asked[1]) if asked else 0
        headers = {"ETag": f'"{git_hash(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        body, fault = data[begin:], ""
        if with_body:
            self.hub.seen.append(Seen(name, begin, self.headers.get("Authorization")))
            fault = self.hub.faults[name].pop(0) if self.hub.faults[name] else ""
        if fault == "error":
            self._answer(500, {})
            return
        if fault == "corrupt":
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault == "short":
            body = body[: len(body) // 2]
        self._answer(206 if begin else 200, headers, body, with_body=with_body, cut=fault == "cut")

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes = b"", *, with_body: bool = True, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
