"""Heartbeats of runs, on a local disk and on a real S3 API."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from caption_assets.store.failure import StoreError
from caption_assets.store.heartbeat import FOLDER, Heartbeat, list_heartbeats, read_heartbeat, remove_heartbeat
from caption_assets.store.root import Root


@pytest.fixture(params=[pytest.param("local", marks=pytest.mark.fast), pytest.param("s3", marks=pytest.mark.store)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    """An empty root, once on this machine's disk and once on a real S3 API."""
    if request.param == "local":
        return Root.open(str(tmp_path / "root"))
    return Root.open(request.getfixturevalue("s3_url"))


def heartbeat(
    root: Root,
    run: str = "run",
    seconds: float = 0.3,
    *,
    is_over: Callable[[], bool] = lambda: False,
    on_over: Callable[[], None] = lambda: None,
    on_trouble: Callable[[str], None] = lambda _: None,
) -> Heartbeat:
    return Heartbeat(lambda: root, run, seconds, is_over=is_over, on_over=on_over, on_trouble=on_trouble)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_heartbeat_names_its_process_and_goes_with_its_block(root: Root) -> None:
    with heartbeat(root, "run-1", 90), heartbeat(root, "run-2", 90):
        assert list_heartbeats(root).keys() == {"run-1", "run-2"}
        pulse = read_heartbeat(root, "run-1")
        assert pulse is not None
        assert pulse.seconds == 90
        assert "process" in pulse.process
    assert list_heartbeats(root) == {}
    assert read_heartbeat(root, "run-1") is None


def test_a_living_run_renews_its_heartbeat(root: Root) -> None:
    with heartbeat(root):
        first = list_heartbeats(root)
        until(lambda: list_heartbeats(root) != first)


def test_a_heartbeat_stays_where_nobody_renews_or_removes_it(root: Root) -> None:
    root.write(f"{FOLDER}/killed", b'{"process": "host, process 1", "seconds": 120}')
    first = list_heartbeats(root)
    with heartbeat(root, "alive"):
        until(lambda: len(list_heartbeats(root)) == 2)
        assert list_heartbeats(root)["killed"] == first["killed"]
    remove_heartbeat(root, "killed")
    remove_heartbeat(root, "killed")
    assert list_heartbeats(root) == {}


@pytest.mark.parametrize("damaged", [b"", b'{"process": "host", "sec', b"[]", b'{"process": "host"}', b"\xff\xfe"])
def test_a_damaged_heartbeat_says_nothing(root: Root, damaged: bytes) -> None:
    root.write(f"{FOLDER}/run", damaged)
    assert read_heartbeat(root, "run") is None
    assert list_heartbeats(root).keys() == {"run"}


@pytest.mark.fast
def test_a_run_that_was_ended_from_outside_is_told_so_and_leaves_no_heartbeat(tmp_path: Path) -> None:
    root, over, told = Root.open(str(tmp_path)), threading.Event(), threading.Semaphore(0)
    with heartbeat(root, is_over=over.is_set, on_over=told.release):
        over.set()
        assert told.acquire(timeout=60)
        assert not told.acquire(timeout=0.5)  # it is given time to stop
    assert list_heartbeats(root) == {}


@pytest.mark.fast
def test_a_root_that_cannot_be_written_is_told_of_once_and_tried_again(tmp_path: Path) -> None:
    root, troubles = Root.open(str(tmp_path / "root")), list[str]()
    opened = threading.Semaphore(2)

    def open_root() -> Root:
        if opened.acquire(blocking=False):
            raise StoreError("the disk is full")
        return root

    beating = Heartbeat(open_root, "run", 0.3, is_over=lambda: False, on_over=lambda: None, on_trouble=troubles.append)
    with beating:
        until(lambda: list_heartbeats(root).keys() == {"run"})
    assert troubles == ["the disk is full"]


@pytest.mark.fast
def test_a_database_that_does_not_answer_ends_no_run(tmp_path: Path) -> None:
    asked = threading.Semaphore(0)

    def is_over() -> bool:
        asked.release()
        raise OSError("database is locked")

    told = threading.Event()
    with heartbeat(Root.open(str(tmp_path)), is_over=is_over, on_over=told.set):
        assert asked.acquire(timeout=60)
        assert asked.acquire(timeout=60)
    assert not told.is_set()
