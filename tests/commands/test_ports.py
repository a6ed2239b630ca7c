from __future__ import annotations

import os
import socket

import pytest

from caption_assets.commands.ports import PortTaken, check_port, listening_process

pytestmark = pytest.mark.fast


def test_taken_port_is_refused_with_its_process_and_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert listening_process(port) == os.getpid()
        with pytest.raises(PortTaken) as taken:
            check_port(port, "take another one")
    assert str(taken.value).startswith(f"port {port} is not free (process {os.getpid()}, ")
    assert str(taken.value).endswith("): take another one")
    check_port(port, "")


def test_port_that_listens_on_all_addresses_is_taken() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        with pytest.raises(PortTaken):
            check_port(server.getsockname()[1], "")
        assert listening_process(server.getsockname()[1]) == os.getpid()


def test_port_of_an_ended_server_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0] as accepted:
            accepted.close()  # first, so that its side waits in TIME_WAIT
            client.recv(1)
    check_port(port, "")


def test_privileged_port_names_the_reason() -> None:
    if os.geteuid() == 0:
        pytest.skip("root may listen on every port")
    with pytest.raises(PortTaken, match="Permission denied"):
        check_port(1, "")
