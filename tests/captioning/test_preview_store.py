"""Tests of the storing of previews, in a store that is slow, fails or is full."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from threading import Event

import pytest
from fsspec.implementations.local import LocalFileSystem

from caption_assets.captioning import preview_store
from caption_assets.captioning.preview_store import PreviewStore
from caption_assets.captioning.window_job import WindowJob
from caption_assets.store.previews import Preview, StoredPreviews
from caption_assets.store.root import Root
from tests.report.windows import window

pytestmark = pytest.mark.fast

PREVIEW = Preview(b"jpeg", 6)


class GatedFiles(LocalFileSystem):  # type: ignore[misc]
    """A local file system that writes after its gate is open."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.gate = Event()

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: object) -> None:
        """Write a file."""
        self.gate.wait(timeout=30)
        super().pipe_file(path, value, mode=mode, **options)


def jobs(count: int, shard: str = "shard") -> list[WindowJob]:
    return [WindowJob(window(f"{number}.mp4"), lambda: [], (), shard, number) for number in range(count)]


def test_windows_do_not_wait_for_the_store_but_their_shard_does(tmp_path: Path) -> None:
    files = GatedFiles()
    root = Root(str(tmp_path), files, str(tmp_path))
    with PreviewStore(root, pytest.fail) as previews:
        for job in jobs(30):
            previews.store(job, PREVIEW)
        assert root.names("gallery/shard/previews") == []
        files.gate.set()
        previews.wait("shard")
        assert len(root.names("gallery/shard/previews")) == 30
        previews.wait("shard without previews")


def test_shard_waits_for_a_limited_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview_store, "WAIT_SECONDS", 0.01)
    files = GatedFiles()
    with PreviewStore(Root(str(tmp_path), files, str(tmp_path)), pytest.fail) as previews:
        previews.store(jobs(1)[0], PREVIEW)
        previews.wait("shard")
        files.gate.set()


def test_end_of_a_run_waits_for_previews(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    made = jobs(30)
    with PreviewStore(root, pytest.fail) as previews:
        for job in made:
            previews.store(job, PREVIEW)
    stored = StoredPreviews(root, "shard")
    assert all(job.window.window_id in stored for job in made)


def test_canceled_run_does_not_wait_for_previews(tmp_path: Path) -> None:
    files = GatedFiles()
    root = Root(str(tmp_path), files, str(tmp_path))
    with suppress(KeyboardInterrupt), PreviewStore(root, pytest.fail) as previews:
        for job in jobs(30):
            previews.store(job, PREVIEW)
        raise KeyboardInterrupt
    assert root.names("gallery/shard/previews") == []
    files.gate.set()


def test_failures_are_one_warning_for_each_shard(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    (tmp_path / "gallery").write_text("not a folder")
    warnings: list[str] = []
    with PreviewStore(root, warnings.append) as previews:
        for job in [*jobs(5, "a"), *jobs(5, "b")]:
            previews.store(job, PREVIEW)
    assert sorted(warning.partition(":")[0] for warning in warnings) == ["a", "b"]
    assert all("further failures in this shard are not reported" in warning for warning in warnings)
