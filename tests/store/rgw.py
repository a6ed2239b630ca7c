"""Ceph's object gateway (RGW) on loopback: a real object store that checks keys and signatures."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.store.server import S3Server

STARTUP_SECONDS = 90
"""Start timeout of each daemon; in total, starting takes about 13 s on two cores."""
CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon_port}/0]
public_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
run_dir = {folder}
crash_dir = {folder}
admin_socket =
pid_file =
log_file =
mon_data = {folder}/mon
mon_allow_pool_size_one = true
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{port}
rgw_enable_gc_threads = false
rgw_enable_lc_threads = false
rgw_run_sync_thread = false
"""


@contextmanager
def rgw_server(folder: Path) -> Iterator[S3Server]:
    """Run a monitor, an OSD in memory and a gateway.

    Raises:
        RuntimeError: if Ceph is not installed, or a daemon does not start.
    """
    if shutil.which("radosgw") is None:
        raise RuntimeError("radosgw is not installed: run the tests with `make test-rgw`, which installs it")
    cluster = _Cluster(folder)
    with ExitStack() as daemons:
        daemons.enter_context(cluster.daemon("ceph-mon", "--id", "a"))
        cluster.wait_until(cluster.has_monitor)
        cluster.call("ceph", "osd", "new", cluster.osd)
        cluster.call("ceph-osd", "--mkfs", "--id", "0", "--osd-uuid", cluster.osd)
        daemons.enter_context(cluster.daemon("ceph-osd", "--id", "0"))
        daemons.enter_context(cluster.daemon("radosgw", "--name", "client.rgw"))
        cluster.wait_until(cluster.has_gateway)
        user = json.loads(cluster.call("radosgw-admin", "user", "create", "--uid=tests", "--display-name=tests"))
        keys = user["keys"][0]
        yield S3Server(f"http://127.0.0.1:{cluster.port}", keys["access_key"], keys["secret_key"])


class _Cluster:
    """A cluster's files, ports and commands."""

    def __init__(self, folder: Path) -> None:
        self.osd = str(uuid.uuid4())
        mon_port, self.port = _free_ports(2)
        self._folder = folder
        for name in ("mon", "osd", "rgw"):
            (folder / name).mkdir()
        fsid = str(uuid.uuid4())
        (folder / "ceph.conf").write_text(
            CONFIGURATION.format(folder=folder, fsid=fsid, mon_port=mon_port, port=self.port)
        )
        monitors = str(folder / "monmap")
        self.call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", monitors)
        self.call("ceph-mon", "--mkfs", "--id", "a", "--monmap", monitors)

    def call(self, *command: str) -> str:
        """Output of a command."""
        done = subprocess.run(
            self._configured(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STARTUP_SECONDS,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
        return done.stdout

    @contextmanager
    def daemon(self, *command: str) -> Iterator[None]:
        """Run a daemon, which also stops if the tests are killed."""
        with (self._folder / f"{command[0]}.log").open("wb") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self._configured(command), "--foreground"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield
        finally:
            process.kill()  # its data is temporary
            process.wait()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + STARTUP_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"Ceph is not up after {STARTUP_SECONDS} s: see the logs in {self._folder}")
            time.sleep(0.2)

    def has_monitor(self) -> bool:
        """Whether the monitor responds."""
        return not subprocess.run(
            self._configured(("ceph", "--connect-timeout", "5", "status")), capture_output=True
        ).returncode

    def has_gateway(self) -> bool:
        """Whether the gateway accepts connections."""
        with socket.socket() as probe:
            return not probe.connect_ex(("127.0.0.1", self.port))

    def _configured(self, command: tuple[str, ...]) -> list[str]:
        return [*command, "--conf", str(self._folder / "ceph.conf")]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
