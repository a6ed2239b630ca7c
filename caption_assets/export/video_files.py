"""The video files of a shard's dataset: windows that are cut out of their clips, and clips as they are.

A file's name is a hash of everything that decides its content. A rerun makes only those that do not exist yet.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import astuple, dataclass, replace
from fractions import Fraction
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Event, Lock

from caption_assets.captioning.decoding import require
from caption_assets.errors import UnreadableClip
from caption_assets.export.clip import CaptionedClip, VideoFile
from caption_assets.export.config import Cut, CutConfig
from caption_assets.export.formats.layout import Videos, sample_key
from caption_assets.export.index import DATA, shard_folder
from caption_assets.sources.manifest import PIECE_BYTES, clip_pieces, read_clip
from caption_assets.store.disk import temporary_folder
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow
from caption_assets.video.cut import MP4_CODECS, CutMethod
from caption_assets.video.cut_in_worker import cut_shared
from caption_assets.video.cut_plan import CutPlan
from caption_assets.workers.sandbox import Sandbox
from caption_assets.workers.shared_memory import ClipFile

CUT_VERSION = 1
"""Version of the files' content. Increase it when the same plan would give another file."""
LEFT_OUT = "window_files"
"""Prefix of the reason why a window is left out that cannot be cut; the kind of error follows."""
CHANGING_KINDS = frozenset({"too_slow", "too_large", "decoder_died"})
"""Kinds of errors that depend on the machine or its load: such a window is tried again by the next export."""
PART_WINDOWS = 32
"""Maximum number of windows of a clip that one worker cuts; the next ones may be cut by another at the same time."""
PAUSE_SHARE = 0.25
"""Share of the workers' time limit after which a cut pauses: a window may take longer than a job."""
MAX_DENOMINATOR = 1001
"""Maximum denominator of frame rates, which is that of 30000/1001."""
SAME_RATE = 5e-4
"""Maximum relative difference of equal frame rates: half of that between 24 and 24000/1001."""
TOLERANCE = 1e-3
"""Share of a frame by which times are rounded."""
SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")


def plan_cut(row: ManifestRow, config: CutConfig) -> CutPlan:
    """The file of a window: its frames, rate and size, from the manifest alone.

    A window of constant frame rate keeps its rate. One of variable rate has its average rate if it is encoded anew.

    Args:
        row: the row of a readable window.
        config: the settings.
    """
    start, end = require(row.start_frame), require(row.end_frame)
    width, height = require(row.width), require(row.height)
    frames, seconds = end - start, require(row.end_seconds) - require(row.start_seconds)
    rate = _rate(frames / seconds if row.variable_fps and seconds > 0 else row.clip_fps or 1.0)
    size = (width, height) if config.cut is Cut.REMUX else _even(width, height, config.longest_side)
    shown = min(seconds, config.seconds or math.inf)
    resampled = config.fps is not None and abs(config.fps / rate - 1) > SAME_RATE
    if config.fps is not None:
        rate = _rate(config.fps)
    if resampled:
        count = max(math.ceil(shown * rate - TOLERANCE), 1)
    elif config.seconds is not None:
        count = min(max(math.floor(config.seconds * rate + TOLERANCE), 1), frames)
    else:
        count = frames
    return CutPlan(
        start_frame=start,
        end_frame=end,
        frames=count,
        fps=rate,
        width=size[0],
        height=size[1],
        resampled=resampled,
        can_copy=count == frames and not resampled and size == (width, height) and _is_upright(row),
        as_stored=config.cut is Cut.REMUX,
        # A file that holds its last frame lasts longer than its frames do.
        is_whole_clip=start == 0 and end == row.clip_frames and seconds * rate < frames + 1,
        audio=config.audio and bool(row.has_audio),
    )


def _rate(fps: float) -> Fraction:
    return max(Fraction(fps).limit_denominator(MAX_DENOMINATOR), Fraction(1, MAX_DENOMINATOR))


def _even(width: int, height: int, longest_side: int | None) -> tuple[int, int]:
    """Even width and height of at most the given ones and ``longest_side``, in about the same ratio."""
    longest = min(max(width, height), longest_side or math.inf)
    scale = longest / max(width, height)

    def fit(side: int) -> int:
        return max(min(round(side * scale / 2) * 2, int(longest) // 2 * 2, side // 2 * 2), 2)

    return fit(width), fit(height)


def _is_upright(row: ManifestRow) -> bool:
    return not row.rotation and not row.mirrored and not row.interlaced and row.codec in MP4_CODECS


@dataclass(frozen=True, slots=True)
class WindowFile:
    """A file to be cut."""

    name: str
    """In the shard's folder."""
    plan: CutPlan
    window: str
    """Names of clip and window, for messages."""


def window_file(shard: str, row: ManifestRow, config: CutConfig) -> WindowFile:
    """The file of a window. Its name is unique in the dataset."""
    plan = plan_cut(row, config)
    identity = [CUT_VERSION, shard, row.window_id, row.content_tag, *map(str, astuple(plan))]
    name = f"{sha256(json.dumps(identity).encode()).hexdigest()[:24]}.mp4"
    return WindowFile(name, plan, f"{row.clip_key!r}, window {row.window_index}")


def clip_file_name(clip: CaptionedClip) -> str:
    """The name of a clip's file: its key in the dataset, with its own suffix."""
    suffix = posixpath.splitext(clip.row.clip_key)[1].lower()
    return f"{sample_key(clip)}{suffix if SUFFIX.fullmatch(suffix) else '.mp4'}"


def with_video_files(
    clips: Iterable[CaptionedClip], videos: Videos, config: CutConfig, failures: Mapping[str, str]
) -> Iterator[CaptionedClip]:
    """The clips with the video file of each window. Windows that cannot be cut are left out.

    Args:
        clips: the clips to export.
        videos: the video files that the format needs.
        config: the settings.
        failures: the kind of error of each file that cannot be made, by name.
    """
    for clip in clips:
        if config.cut is not Cut.NONE:
            yield _with_window_files(clip, config, failures)
        elif videos is Videos.CLIPS:
            video = _clip_file(clip)
            yield replace(clip, windows=tuple(replace(window, video=video) for window in clip.windows))
        else:
            yield clip


def _with_window_files(clip: CaptionedClip, config: CutConfig, failures: Mapping[str, str]) -> CaptionedClip:
    windows, left_out = [], list(clip.left_out)
    for window in clip.windows:
        file = window_file(clip.shard, window.row, config)
        if file.name in failures:
            left_out.append(f"{LEFT_OUT}: {failures[file.name]}")
            continue
        plan = file.plan
        video = VideoFile(
            f"{DATA}/shard={clip.shard}/{file.name}",
            plan.frames,
            float(plan.fps),
            plan.seconds,
            plan.width,
            plan.height,
        )
        windows.append(replace(window, video=video))
    return replace(clip, windows=tuple(windows), left_out=tuple(left_out))


def _clip_file(clip: CaptionedClip) -> VideoFile:
    row = clip.windows[0].row if clip.windows else clip.row
    path = f"{DATA}/shard={clip.shard}/{clip_file_name(clip)}"
    return VideoFile(
        path, row.clip_frames or 0, row.clip_fps or 1.0, row.clip_seconds or 0.0, row.width or 0, row.height or 0
    )


class VideoFileWriter:
    """Writes the video files of a shard that do not exist yet, several at once.

    A clip is read once for all of its windows. Windows are cut in worker processes.

    Args:
        root: the root with the dataset.
        source: the source of the clips.
        shard: the shard's key.
        config: the settings of window files.
        start_workers: starts the worker processes, with the first window to cut.
        present: names of the files that exist.
    """

    def __init__(
        self,
        root: Root,
        source: Root,
        shard: str,
        config: CutConfig,
        start_workers: Callable[[], Sandbox],
        present: Collection[str],
    ) -> None:
        self._root = root
        self._source = source
        self._shard = shard
        self._config = config
        self._start_workers = start_workers
        self._present = present
        self._stopped = Event()

    def cut(self, clips: Iterable[CaptionedClip]) -> dict[str, UnreadableClip]:
        """Write the files of the clips' windows.

        Returns:
            The reason for each file that cannot be made, by name.

        Raises:
            ClipChanged: if a clip is missing or changed.
            StoreError: if a clip cannot be read, or a file cannot be written.
        """
        found: dict[str, UnreadableClip] = {}
        with ExitStack() as stack:
            sandbox: Sandbox | None = None
            pending: deque[Future[dict[str, UnreadableClip]]] = deque()
            for clip, part in self._parts(clips):
                if sandbox is None:
                    folder = stack.enter_context(temporary_folder())
                    sandbox = self._start_workers()
                    pool = ThreadPoolExecutor(sandbox.workers + 1, "cut")
                    stack.callback(pool.shutdown, cancel_futures=True)
                    stack.enter_context(sandbox)  # ends before the pool, so that no thread waits for a job
                    stack.callback(self._stopped.set)
                pending.append(pool.submit(self._cut_part, sandbox, folder, clip, part))
                if len(pending) > 2 * sandbox.workers:
                    found.update(pending.popleft().result())
            while pending:
                found.update(pending.popleft().result())
        return found

    def copy(self, clips: Iterable[CaptionedClip], parallel: int) -> None:
        """Write the files of clips as they are.

        Args:
            clips: the clips to export.
            parallel: number of clips that are copied at the same time.

        Raises:
            ClipChanged: if a clip is missing or changed.
            StoreError: if a clip cannot be read, or a file cannot be written.
        """
        with ThreadPoolExecutor(parallel, "copy") as pool:
            pending: deque[Future[None]] = deque()
            try:
                for clip in clips:
                    if clip.windows and clip_file_name(clip) not in self._present:
                        pending.append(pool.submit(self._copy_clip, clip))
                    if len(pending) > 2 * parallel:
                        pending.popleft().result()
                while pending:
                    pending.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _parts(self, clips: Iterable[CaptionedClip]) -> Iterator[tuple[_SharedClip, Sequence[WindowFile]]]:
        """The files to make, of a few windows of one clip each."""
        for clip in clips:
            files = [window_file(clip.shard, window.row, self._config) for window in clip.windows]
            missing = [file for file in files if file.name not in self._present]
            shared = _SharedClip(self._source, clip.row)
            for begin in range(0, len(missing), PART_WINDOWS):
                yield shared, missing[begin : begin + PART_WINDOWS]

    def _cut_part(
        self, sandbox: Sandbox, folder: Path, clip: _SharedClip, files: Sequence[WindowFile]
    ) -> dict[str, UnreadableClip]:
        failures = {}
        for file in files:
            if self._stopped.is_set():
                break
            try:
                self._cut_window(sandbox, folder / file.name, clip.file(), files[0].name, file)
            except UnreadableClip as error:
                failures[file.name] = UnreadableClip(error.kind, f"{file.window}: {error}")
        return failures

    def _cut_window(self, sandbox: Sandbox, path: Path, clip: ClipFile, part: str, file: WindowFile) -> None:
        cut = partial(
            cut_shared, (clip.handle, part), file.plan, path, pause_after=PAUSE_SHARE * sandbox.limits.seconds
        )
        try:
            method = None
            while method is None:
                method = sandbox.result(sandbox.submit_with_affinity((clip.serial, part), cut))
            target = f"{shard_folder(self._shard)}/{file.name}"
            if method is CutMethod.AS_IS:
                self._root.upload(target, clip.path)
            else:
                self._root.take(target, path)
        finally:
            path.unlink(missing_ok=True)

    def _copy_clip(self, clip: CaptionedClip) -> None:
        target = f"{shard_folder(self._shard)}/{clip_file_name(clip)}"
        if clip.row.bytes <= PIECE_BYTES:
            self._root.write(target, read_clip(self._source, clip.row))
        else:
            self._root.upload(target, _SharedClip(self._source, clip.row).file().path)


class _SharedClip:
    """A clip that is read when it is first needed, and then shared by threads."""

    def __init__(self, source: Root, row: ManifestRow) -> None:
        self._source = source
        self._row = row
        self._lock = Lock()
        self._file: ClipFile | None = None

    def file(self) -> ClipFile:
        """Its bytes.

        Raises:
            ClipChanged: if they differ from those that were probed.
        """
        with self._lock:
            if self._file is None:
                file = ClipFile(self._row.bytes)
                for piece in clip_pieces(self._source, self._row):
                    file.append(piece)
                self._file = file
            return self._file
