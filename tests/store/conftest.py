from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from s3fs import S3FileSystem

from tests.store.fault_proxy import Fault, FaultProxy
from tests.store.server import S3Server

StartProxy = Callable[..., FaultProxy]
"""Starts a proxy between this process and the server; takes the arguments of ``FaultProxy`` except the first."""


@pytest.fixture
def start_proxy(s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartProxy]:
    with ExitStack() as proxies:

        def start(plan: Iterable[Fault | None] = (), **options: Any) -> FaultProxy:
            proxy = proxies.enter_context(FaultProxy(s3_server.endpoint, plan, **options))
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            S3FileSystem.clear_instance_cache()
            return proxy

        yield start
