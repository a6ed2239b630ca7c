"""A PostgreSQL server on loopback that accepts only encrypted connections, as the server of `k8s/values.yaml`."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from scripts.setup_system import find_program
from tests.processes import free_port

STARTUP_SECONDS = 60
"""Timeout; on two cores initdb takes 2 s and the start half a second."""
USER = "dagster"
UNPRIVILEGED = "nobody"
"""Account of the server if the tests run as root, which PostgreSQL rejects."""
CERTIFICATE = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1")
ACCESS = """
hostssl all all 127.0.0.1/32 scram-sha-256
"""
"""pg_hba.conf: rejects unencrypted connections."""
INITDB = ("--encoding=UTF8", "--no-locale", "--no-sync")
OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "ssl": "on",
    "fsync": "off",  # the data is temporary
}


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A server's port, and the password of its only user."""

    port: int
    password: str

    def create_database(self) -> str:
        """Create an empty database; returns its name."""
        name = f"dagster_{uuid.uuid4().hex}"
        connection = self.connect("postgres")
        connection.autocommit = True  # CREATE DATABASE cannot run in a transaction
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        connection.close()
        return name

    def connect(self, database: str, **options: str) -> psycopg2.extensions.connection:
        """Connect to a database."""
        return psycopg2.connect(
            host="127.0.0.1", port=self.port, user=USER, password=self.password, dbname=database, **options
        )


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a server as an unprivileged user, in a temporary folder that is deleted afterwards.

    Raises:
        RuntimeError: if PostgreSQL is not installed, or does not start.
    """
    initdb, postgres = find_program("initdb"), find_program("postgres")
    if initdb is None or postgres is None:
        raise RuntimeError("PostgreSQL is not installed: run `make system`, or install Debian's package postgresql")
    account = UNPRIVILEGED if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        if account:
            shutil.chown(folder, account)
        password = secrets.token_hex(16)
        _initialize(initdb, folder, account, password)
        server = PostgresServer(free_port(), password)
        with _running(postgres, folder, account, server):
            yield server
    finally:
        shutil.rmtree(folder)


def _initialize(initdb: str, folder: Path, account: str | None, password: str) -> None:
    secret = folder / "password"
    _write(secret, password, account)
    _call([initdb, "-D", "data", "-U", USER, "--auth=scram-sha-256", "--pwfile=password", *INITDB], folder, account)
    _call(["openssl", *CERTIFICATE, "-keyout", "data/server.key", "-out", "data/server.crt"], folder, account)
    _write(folder / "data" / "pg_hba.conf", ACCESS, account)
    secret.unlink()


def _write(file: Path, text: str, account: str | None) -> None:
    file.write_text(text)
    file.chmod(0o600)
    if account:
        shutil.chown(file, account)


def _call(command: Sequence[str], folder: Path, account: str | None) -> None:
    done = subprocess.run(command, cwd=folder, user=account, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")


@contextmanager
def _running(postgres: str, folder: Path, account: str | None, server: PostgresServer) -> Iterator[None]:
    options = [word for name, value in OPTIONS.items() for word in ("-c", f"{name}={value}")]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            # The server stops if the test session is killed; SIGINT is its fast shutdown.
            ["setpriv", "--pdeathsig", "INT", postgres, "-D", "data", "-p", str(server.port), *options],
            cwd=folder,
            user=account,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            _wait_until_ready(process, server)
            yield
        except TimeoutError as error:
            log.seek(0)
            raise RuntimeError(f"{error}: {log.read().decode(errors='replace')}") from None
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(STARTUP_SECONDS)


def _wait_until_ready(process: subprocess.Popen[bytes], server: PostgresServer) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            server.connect("postgres").close()
            return
        except psycopg2.OperationalError:
            time.sleep(0.1)
    raise TimeoutError("PostgreSQL did not start")
