"""The two sample shards of the demo: ``caption-assets sample-shards FOLDER``."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from caption_assets.sample.clips import SampleClip, encode, random_clip
from caption_assets.sample.world import random_scene

CLIPS_PER_SHARD = 12
FOLDER_SHARD = "sample-folder"
TAR_SHARD = "sample-tar"
ANSWERS = "answers.json"
"""File beside the shards with the correct answers about every window, for tests and the demo's table."""
SEEDS = {FOLDER_SHARD: 1000, TAR_SHARD: 2000}
BROKEN_CLIP = CLIPS_PER_SHARD - 1
"""Index of the broken clip in each shard."""
TWO_WINDOW_CLIP = 4
"""Index of a clip of two windows in each shard."""


@dataclass(frozen=True, slots=True)
class SampleFile:
    """One file of a sample shard."""

    key: str
    data: bytes
    answers: tuple[dict[str, str], ...]
    """The correct answers about each window, by stage of the recipe ``sample``; none for a broken file."""


def write_shards(folder: Path) -> None:
    """Write both shards into ``folder`` and the correct answers beside it, unless all of them exist."""
    answers_path = folder.parent / ANSWERS
    if all(path.exists() for path in (answers_path, folder / FOLDER_SHARD, folder / f"{TAR_SHARD}.tar")):
        return
    files = {shard: list(sample_files(shard)) for shard in SEEDS}
    (folder / FOLDER_SHARD).mkdir(parents=True, exist_ok=True)
    for file in files[FOLDER_SHARD]:
        (folder / FOLDER_SHARD / file.key).write_bytes(file.data)
    with tarfile.open(folder / f"{TAR_SHARD}.tar", "w") as archive:
        for file in files[TAR_SHARD]:
            member = tarfile.TarInfo(file.key)
            member.size = len(file.data)
            archive.addfile(member, io.BytesIO(file.data))
    answers = {shard: {file.key: file.answers for file in shard_files} for shard, shard_files in files.items()}
    answers_path.write_text(json.dumps(answers, indent=2) + "\n")


def sample_files(shard: str) -> Iterator[SampleFile]:
    """The files of one of the two shards, sorted by key."""
    for index in range(CLIPS_PER_SHARD):
        clip = random_clip(SEEDS[shard] + index, shortest=(160, 360), longest_seconds=6.0)
        if index == BROKEN_CLIP:
            yield _broken_file(shard, index, clip)
            continue
        if index == TWO_WINDOW_CLIP:
            clip = _of_two_windows(clip)
        answers = tuple(scene.answers for scene in clip.scenes)
        yield SampleFile(f"clip-{index:02d}{clip.suffix}", encode(clip), answers)


def _broken_file(shard: str, index: int, clip: SampleClip) -> SampleFile:
    """A truncated clip, or a web server's error page saved as a clip."""
    if shard == FOLDER_SHARD:
        data = encode(replace(clip, codec="h264"))
        return SampleFile(f"clip-{index:02d}-truncated.mp4", data[: len(data) // 2], ())
    return SampleFile(f"clip-{index:02d}-not-a-video.mp4", b"<html><body>404 Not Found</body></html>\n", ())


def _of_two_windows(clip: SampleClip) -> SampleClip:
    """The clip, extended to two windows with a scene each."""
    rng = np.random.default_rng(clip.seed)
    second = random_scene(rng, clip.width, clip.height)
    return replace(clip, scenes=(*clip.scenes, second), frames=256)
