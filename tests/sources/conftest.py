"""Fixtures and helpers for tests of sources: an empty source, and tars."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from caption_assets.sources.clip import Clip
from caption_assets.store.root import Root


@pytest.fixture(params=[pytest.param("local", marks=pytest.mark.fast), pytest.param("s3", marks=pytest.mark.store)])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    """An empty source, on the local disk and on a real S3 API."""
    return Root.open(str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_url"))


def tar_bytes(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    """A tar of files, given as pairs of name and content, and of members without content."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", encoding="utf-8") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                name, data = member
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A member without content, such as a link or a device."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def outcomes(clips: list[Clip]) -> list[tuple[str, str | None]]:
    """The key of each clip with the kind of its refusal, or None if it is accepted."""
    return [(clip.key, clip.refusal.kind if clip.refusal else None) for clip in clips]
