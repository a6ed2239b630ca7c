"""Tests of runs' heartbeats, on a local disk and on an S3 API."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from caption_assets.store.failure import StoreError
from caption_assets.store.heartbeat import FOLDER, Heartbeat, list_heartbeats, read_heartbeat, remove_heartbeat
from caption_assets.store.root import Root
from tests.processes import wait_until


@pytest.fixture(params=[pytest.param("local", marks=pytest.mark.fast), pytest.param("s3", marks=pytest.mark.store)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    """An empty root, on the local disk and on an S3 API."""
    if request.param == "local":
        return Root.open(str(tmp_path / "root"))
    return Root.open(request.getfixturevalue("s3_url"))


def heartbeat(
    root: Root,
    run: str = "run",
    seconds: float = 0.3,
    *,
    has_ended: Callable[[], bool] = lambda: False,
    interrupt: Callable[[], None] = lambda: None,
    on_error: Callable[[str], None] = lambda _: None,
) -> Heartbeat:
    return Heartbeat(lambda: root, run, seconds, has_ended=has_ended, interrupt=interrupt, on_error=on_error)


def test_heartbeat_names_its_process_and_ends_with_its_block(root: Root) -> None:
    with heartbeat(root, "run-1", 90), heartbeat(root, "run-2", 90):
        assert list_heartbeats(root).keys() == {"run-1", "run-2"}
        record = read_heartbeat(root, "run-1")
        assert record is not None
        assert record.seconds == 90
        assert "process" in record.process
    assert list_heartbeats(root) == {}
    assert read_heartbeat(root, "run-1") is None


def test_heartbeat_is_renewed(root: Root) -> None:
    with heartbeat(root):
        first = list_heartbeats(root)
        wait_until(lambda: list_heartbeats(root) != first, 60)


def test_heartbeat_of_a_killed_run_stays_unchanged(root: Root) -> None:
    root.write(f"{FOLDER}/killed", b'{"process": "host, process 1", "seconds": 120}')
    first = list_heartbeats(root)
    with heartbeat(root, "other"):
        wait_until(lambda: len(list_heartbeats(root)) == 2, 60)
        assert list_heartbeats(root)["killed"] == first["killed"]
    remove_heartbeat(root, "killed")
    remove_heartbeat(root, "killed")
    assert list_heartbeats(root) == {}


@pytest.mark.parametrize("damaged", [b"", b'{"process": "host", "sec', b"[]", b'{"process": "host"}', b"\xff\xfe"])
def test_damaged_heartbeat_has_no_content(root: Root, damaged: bytes) -> None:
    root.write(f"{FOLDER}/run", damaged)
    assert read_heartbeat(root, "run") is None
    assert list_heartbeats(root).keys() == {"run"}


@pytest.mark.fast
def test_run_ended_from_outside_is_interrupted_and_leaves_no_heartbeat(tmp_path: Path) -> None:
    root, has_ended, interrupts = Root.open(str(tmp_path)), threading.Event(), threading.Semaphore(0)
    with heartbeat(root, has_ended=has_ended.is_set, interrupt=interrupts.release):
        has_ended.set()
        assert interrupts.acquire(timeout=60)
        assert not interrupts.acquire(timeout=0.5)  # the run gets time to stop
    assert list_heartbeats(root) == {}


@pytest.mark.fast
def test_root_that_cannot_be_opened_is_retried_and_left_to_the_steps_to_report(tmp_path: Path) -> None:
    root, errors = Root.open(str(tmp_path / "root")), list[str]()
    opened = threading.Semaphore(2)

    def open_root() -> Root:
        if opened.acquire(blocking=False):
            raise StoreError("the disk is full")
        return root

    heart = Heartbeat(open_root, "run", 0.3, has_ended=lambda: False, interrupt=lambda: None, on_error=errors.append)
    with heart:
        wait_until(lambda: list_heartbeats(root).keys() == {"run"}, 60)
    assert errors == []


@pytest.mark.fast
def test_heartbeat_that_cannot_be_written_is_reported_once(tmp_path: Path) -> None:
    root, errors = Root.open(str(tmp_path / "root")), list[str]()
    (tmp_path / "root").mkdir(exist_ok=True)
    (tmp_path / "root" / FOLDER).write_text("not a folder")
    heart = Heartbeat(lambda: root, "run", 0.3, has_ended=lambda: False, interrupt=lambda: None, on_error=errors.append)
    with heart:
        wait_until(lambda: bool(errors), 60)
        time.sleep(0.5)  # several more attempts
    [error] = errors
    assert FOLDER in error


@pytest.mark.fast
def test_database_error_does_not_end_the_run(tmp_path: Path) -> None:
    checks = threading.Semaphore(0)

    def has_ended() -> bool:
        checks.release()
        raise OSError("database is locked")

    interrupted = threading.Event()
    with heartbeat(Root.open(str(tmp_path)), has_ended=has_ended, interrupt=interrupted.set):
        assert checks.acquire(timeout=60)
        assert checks.acquire(timeout=60)
    assert not interrupted.is_set()
