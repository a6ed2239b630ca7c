"""A server of galleries on a free port, with a client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

from caption_assets.report.server import gallery_app, listen, serving
from caption_assets.store.root import Root
from tests.stages import STAGES


@contextmanager
def served(root: Root, *hosts: str) -> Iterator[httpx2.Client]:
    """A client of a server of a root, reached on loopback and under the names ``hosts``."""
    app = gallery_app(root, [stage.name for stage in STAGES], hosts)
    with listen("127.0.0.1", 0) as listener, serving(app, listener):
        port = listener.getsockname()[1]
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield client
