"""Cutting in a worker process: the clip is read from a shared file, and the window's file is written to a folder."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from caption_assets.video.cut import CutMethod, WindowCutter
from caption_assets.video.cut_plan import CutPlan
from caption_assets.workers.job_queue import MAX_OPEN_CLIPS
from caption_assets.workers.shared_memory import BufferHandle

ClipPart = tuple[BufferHandle, str]
"""A file with a clip's bytes, and the name of a run of its windows: one worker cuts these in order."""

_open_clips: OrderedDict[ClipPart, WindowCutter] = OrderedDict()
"""This worker's open clips, least recently used first."""
_unfinished: dict[ClipPart, tuple[Path, Iterator[CutMethod | None]]] = {}
"""The window of each open clip whose file is not finished, with its path."""


def load_cutter() -> None:
    """Do nothing: a worker that gets this job imports this module, and thus what ``cut_shared`` needs."""


def cut_shared(clip: ClipPart, plan: CutPlan, path: Path, *, pause_after: float) -> CutMethod | None:
    """Cut a window as ``WindowCutter.cut`` does, from a shared file. The clip stays open for its other windows.

    Args:
        clip: the clip, and the part that the window belongs to.
        plan: see ``WindowCutter.cut``.
        path: see ``WindowCutter.cut``.
        pause_after: seconds after which to pause.

    Returns:
        How the file was made; None if it is not finished: repeat the call to continue.

    Raises:
        UnreadableClip: if the window cannot be cut.
    """
    pause_at = time.monotonic() + pause_after
    try:
        cutter = _open_cutter(clip)
        unfinished, steps = _unfinished.pop(clip, (None, iter(())))
        if unfinished != path:
            steps = cutter.cut(plan, path)
        for method in steps:
            if method is not None:
                return method
            if time.monotonic() > pause_at:
                _unfinished[clip] = path, steps
                return None
    except BaseException:
        _close(clip)
        raise
    raise AssertionError("a cut ends with its method")


def _open_cutter(clip: ClipPart) -> WindowCutter:
    if clip not in _open_clips:
        while len(_open_clips) >= MAX_OPEN_CLIPS:
            _close(next(iter(_open_clips)))
        _open_clips[clip] = WindowCutter(clip[0].open)
    _open_clips.move_to_end(clip)
    return _open_clips[clip]


def _close(clip: ClipPart) -> None:
    _unfinished.pop(clip, None)
    if cutter := _open_clips.pop(clip, None):
        cutter.close()
