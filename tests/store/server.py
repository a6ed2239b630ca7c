"""The S3 server of the tests."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import boto3
import pytest
from s3fs import S3FileSystem


@dataclass(frozen=True, slots=True)
class S3Server:
    """A server's endpoint, and the keys of a user with all permissions."""

    endpoint: str
    key: str
    secret: str


@contextmanager
def moto_server(address: str = "127.0.0.1") -> Iterator[S3Server]:
    """Run moto's S3 emulator on a local address; it accepts any keys."""
    from moto.server import ThreadedMotoServer  # importing it takes two seconds

    server = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3Server(f"http://{host}:{port}", "test", "test")
    server.stop()


@pytest.fixture(scope="session")
def s3_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server on loopback, one for the session: moto's, or the one of ``--s3-server``."""
    if request.config.getoption("--s3-server") == "moto":
        with moto_server() as server:
            yield server
    else:
        from tests.store.rgw import rgw_server

        with rgw_server(tmp_path_factory.mktemp("ceph")) as server:
            yield server


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix in a new bucket of the server; the standard AWS variables are set for it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # without keys, boto would query a cloud's metadata service
    S3FileSystem.clear_instance_cache()  # cached instances keep the variables of other tests
    bucket = f"captions-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/prefix"
