"""A server with the Hub's HTTP protocol: listings with hashes, redirects to signed URLs, ranges, injected faults."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from safetensors.numpy import save

HUB_ID = "someone/small-vl"
COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_" + "PlantedToken" * 3
SIGNATURE = "PlantedSignature" * 4


@dataclass(frozen=True)
class Fault:
    """A fault of one response."""

    status: int = 200
    """The response's status."""
    headers: Callable[[], Mapping[str, str]] = dict
    """Builds further headers when the response is sent."""
    flip: int | None = None
    """Position of a byte with a flipped bit."""
    cut: int | None = None
    """Number of bytes after which the connection breaks."""
    short: int | None = None
    """Number of bytes announced and sent, as if the file were shorter."""
    stall: int | None = None
    """Number of bytes after which the response stalls until the server stops."""
    ignores_range: bool = False
    """Whether the request's range is ignored."""


@dataclass(frozen=True)
class Request:
    """One request."""

    path: str
    query: str
    authorization: str | None
    range: str | None
    time: float
    """Unix time, in seconds."""


@dataclass
class HubServer:
    """A hub with one model at one commit. Records requests. As on the Hub, a second server has the large files."""

    files: dict[str, bytes]
    token: str | None = None
    """The token that requests must send; None for no check."""
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    """Faults of successive responses, by path of a file; ``""`` is the listing."""
    requests: list[Request] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Number of bytes sent, by path of a file."""
    stopped: threading.Event = field(default_factory=threading.Event)
    endpoint: str = ""
    storage: str = ""

    def reads(self, name: str) -> list[Request]:
        """The requests for a file's bytes."""
        return [request for request in self.requests if request.path.endswith(f"/{name}")]

    @contextmanager
    def running(self) -> Iterator[HubServer]:
        """Run both servers on loopback until the block ends."""
        servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler(respond)) for respond in (_hub, _storage)]
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
        for server in servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield self
        finally:
            self.stopped.set()
            for server in servers:
                server.shutdown()
                server.server_close()

    def _handler(self, respond: Any) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                path = unquote(url.path)
                authorization, range_ = self.headers["Authorization"], self.headers["Range"]
                hub.requests.append(Request(path, url.query, authorization, range_, time.time()))
                respond(hub, self, path, url.query)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def listing(self) -> dict[str, Any]:
        """The response of ``/api/models/…/revision/…?blobs=true``."""
        return {"id": HUB_ID, "sha": COMMIT, "siblings": [self._sibling(*file) for file in self.files.items()]}

    def tree(self) -> list[dict[str, Any]]:
        """The response of ``/api/models/…/tree/…``, which ``snapshot_download`` reads."""
        return [
            {
                "type": "file",
                "path": file["rfilename"],
                "size": file["size"],
                "oid": file["blobId"],
                **({"lfs": {**file["lfs"], "oid": file["lfs"]["sha256"]}} if "lfs" in file else {}),
            }
            for file in self.listing()["siblings"]
        ]

    def _sibling(self, name: str, data: bytes) -> dict[str, Any]:
        found: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_blob(data)}
        if _is_large(name):
            found["lfs"] = {"size": len(data), "sha256": sha256(data).hexdigest(), "pointerSize": 134}
        return found


def small_model(shard_bytes: int = 100_000) -> dict[str, bytes]:
    """Files of a model in two shards, and others that must not be downloaded."""
    rng = np.random.default_rng(0)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    tensors = {f"layer.{number}": rng.integers(0, 256, shard_bytes, dtype=np.uint8) for number in range(2)}
    index = {"metadata": {}, "weight_map": dict(zip(tensors, shards, strict=True))}
    return {
        **{shard: save({name: tensors[name]}) for shard, name in zip(shards, tensors, strict=True)},
        "model.safetensors.index.json": json.dumps(index).encode(),
        "config.json": b'{"model_type": "qwen2_5_vl", "auto_map": {"AutoModel": "modeling.Evil"}}',
        "tokenizer.json": b'{"version": "1.0"}',
        "chat_template.jinja": b"{{ messages }}",
        "README.md": b"# Small",
        "modeling.py": b"raise SystemExit",
        "pytorch_model.bin": b"\x80\x04pickle",
        ".gitattributes": b"*.bin filter=lfs",
    }


def git_blob(data: bytes) -> str:
    """Git's hash of a file."""
    return sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def _hub(hub: HubServer, request: BaseHTTPRequestHandler, path: str, query: str) -> None:
    if hub.token and request.headers["Authorization"] != f"Bearer {hub.token}":
        return _refuse(request, 401, "GatedRepo")
    if path.startswith("/api/models/"):
        if path == f"/api/models/{HUB_ID}/tree/{COMMIT}":
            return _send(hub, request, "tree", json.dumps(hub.tree()).encode(), {"Content-Type": "application/json"})
        repository, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        if repository != HUB_ID:
            return _refuse(request, 404, "RepoNotFound")
        if revision not in ("main", COMMIT[:8], COMMIT):
            return _refuse(request, 404, "RevisionNotFound")
        return _send(hub, request, "", json.dumps(hub.listing()).encode(), {"Content-Type": "application/json"})
    name = path.removeprefix(f"/{HUB_ID}/resolve/{COMMIT}/")
    data = hub.files.get(name)
    if data is None:
        return _refuse(request, 404, "EntryNotFound")
    if not _is_large(name):
        return _send(hub, request, name, data, {"ETag": f'"{git_blob(data)}"', "X-Repo-Commit": COMMIT})
    digest = sha256(data).hexdigest()
    request.send_response(302)
    request.send_header("Location", f"{hub.storage}/{digest}/{name}?X-Amz-Expires=3600&X-Amz-Signature={SIGNATURE}")
    request.send_header("X-Linked-Etag", f'"{digest}"')
    request.send_header("X-Linked-Size", str(len(data)))
    request.send_header("X-Repo-Commit", COMMIT)
    request.send_header("Content-Length", "0")
    return request.end_headers()


def _storage(hub: HubServer, request: BaseHTTPRequestHandler, path: str, query: str) -> None:
    if SIGNATURE not in query:
        return _refuse(request, 403, "AccessDenied")
    name = path.split("/", 2)[2]
    return _send(hub, request, name, hub.files[name], {"ETag": '"as-storage-has-it"'})


def _refuse(
    request: BaseHTTPRequestHandler, status: int, code: str, headers: Mapping[str, str] = MappingProxyType({})
) -> None:
    body = f"<Error>{code}: {request.path}</Error>".encode()  # stores include the request's path
    request.send_response(status)
    request.send_header("X-Error-Code", code)
    for header, value in headers.items():
        request.send_header(header, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def _send(hub: HubServer, request: BaseHTTPRequestHandler, name: str, data: bytes, headers: dict[str, str]) -> None:
    fault = hub.faults[name].pop(0) if hub.faults[name] else Fault()
    if fault.status != 200:
        return _refuse(request, fault.status, "Fault", fault.headers())
    if fault.flip is not None:
        data = data[: fault.flip] + bytes([data[fault.flip] ^ 1]) + data[fault.flip + 1 :]
    begin = 0
    if (range_ := request.headers["Range"]) and not fault.ignores_range:
        begin = int(range_.removeprefix("bytes=").removesuffix("-"))
        headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
    body = data[begin:][: fault.short]
    request.send_response(206 if begin else 200)
    for header, value in {**headers, "Content-Length": str(len(body))}.items():
        request.send_header(header, value)
    request.end_headers()
    if request.command == "HEAD":
        return
    stop = min([len(body), *(limit for limit in (fault.cut, fault.stall) if limit is not None)])
    request.wfile.write(body[:stop])
    hub.sent[name] += stop
    if fault.stall is not None:
        request.wfile.flush()
        hub.stopped.wait(60)
    if stop < len(body):
        request.close_connection = True
