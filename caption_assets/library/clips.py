"""Metadata and windows of one clip, found in a worker process."""

from __future__ import annotations

import os
from functools import lru_cache

from caption_assets.errors import UnreadableClip
from caption_assets.settings import load_settings
from caption_assets.sources.files import find_file
from caption_assets.video.probe import Probe, probe_span
from caption_assets.video.window import MIN_WINDOW_FRAMES, Window, split_into_windows
from caption_assets.workers.sandbox import Sandbox, SandboxLimits


def probe(path: str | os.PathLike[str]) -> Probe:
    """The metadata of a clip: codec, size, frame times. Only its headers, and at most a few frames, are decoded.

    A damaged file cannot harm the program: the clip is read in a worker process with the limits of the settings. It
    starts with the first call, in about a second, and ends with the program.

    Args:
        path: a video file: a local path, or a URL (``s3://`` or ``https://``).

    Raises:
        UnreadableClip: if it does not exist or is not a video. The message gives path and reason.
        SettingsError: if a setting is invalid.
    """
    settings = load_settings()
    span = find_file(path, settings.storage.source_access)
    sandbox = _worker(settings.decode)
    try:
        return sandbox.result(sandbox.submit(probe_span, span))
    except UnreadableClip as error:
        raise UnreadableClip(error.kind, f"{os.fspath(path)}: {error}") from error


def windows(path: str | os.PathLike[str]) -> list[Window]:
    """The windows into which a clip is cut for captions, by the settings ``CAPTION_WINDOW_*``; see ``probe``.

    Args:
        path: a video file: a local path, or a URL (``s3://`` or ``https://``).

    Raises:
        UnreadableClip: if it is not a video, or is too short for a window. The message gives path and reason.
        SettingsError: if a setting is invalid.
    """
    found = probe(path)
    if found.frames < MIN_WINDOW_FRAMES:
        raise UnreadableClip(
            "too_short",
            f"{os.fspath(path)} has {found.frames} frames, below the minimum of {MIN_WINDOW_FRAMES} for a window",
        )
    return list(split_into_windows(found.times, found.seconds, load_settings().windowing))


@lru_cache
def _worker(limits: SandboxLimits) -> Sandbox:
    return Sandbox(limits, workers=1)
