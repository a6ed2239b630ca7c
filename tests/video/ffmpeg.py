"""Frames of a file as FFmpeg's command line decodes them: an independent version of the library."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def frame_hashes(path: Path) -> list[str]:
    """The hash of each frame of a file, in presentation order."""
    lines = _run("ffmpeg", "-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "framemd5", "-")
    return [line.rpartition(", ")[2].strip() for line in lines.decode().splitlines() if not line.startswith("#")]


def frame_times(path: Path) -> list[float]:
    """The presentation time of each frame, in seconds."""
    found = _probe(path, "-select_streams", "v:0", "-show_entries", "frame=best_effort_timestamp_time")
    return [float(frame["best_effort_timestamp_time"]) for frame in found["frames"]]


def video_stream(path: Path) -> dict[str, Any]:
    """The properties of the video stream."""
    found: dict[str, Any] = _probe(path, "-select_streams", "v:0", "-show_streams")["streams"][0]
    return found


def audio_samples(path: Path) -> NDArray[np.float32]:
    """The samples of the first audio stream, mono."""
    return np.frombuffer(_run("ffmpeg", "-i", str(path), "-map", "0:a:0", "-ac", "1", "-f", "f32le", "-"), np.float32)


def rgb_frames(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """All frames of a file, uint8 RGB of shape (frames, height, width, 3), without resizing.

    Args:
        path: path of the file.
        size: width and height of its frames.
    """
    data = _run(
        "ffmpeg",
        "-i",
        str(path),
        "-map",
        "0:v:0",
        "-fps_mode",
        "passthrough",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    )
    return np.frombuffer(data, np.uint8).reshape(-1, size[1], size[0], 3)


def _probe(path: Path, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_run("ffprobe", *options, "-of", "json", str(path)))
    return found


def _run(name: str, *arguments: str) -> bytes:
    program = shutil.which(name)
    if program is None:
        raise RuntimeError("FFmpeg's command line is not installed: run `make system`, or apt-get install ffmpeg")
    command = [program, "-v", "error", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
