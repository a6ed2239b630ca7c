from __future__ import annotations

import os
import socket

import pytest

from caption_assets.report.ports import listening_process, occupant

pytestmark = pytest.mark.fast


def test_process_that_listens_on_a_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert occupant(server.getsockname()[1]).startswith(f"process {os.getpid()} (")


def test_process_that_listens_on_all_addresses_is_found() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        assert listening_process(server.getsockname()[1]) == os.getpid()


def test_connection_does_not_listen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
    with client, accepted:
        assert listening_process(port) is None
        assert occupant(port) == "another program"
