"""The plan of a file that is cut out of a clip, as the export decides it from the clip's manifest row."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class CutPlan:
    """A file with one window of a clip."""

    start_frame: int
    """First frame of the window within the clip, in presentation order."""
    end_frame: int
    """One past its last frame."""
    frames: int
    """Number of frames of the file."""
    fps: Fraction
    """Average frames per second of the file; constant unless the clip's stream is copied."""
    width: int
    """Width as displayed, in pixels."""
    height: int
    """Height as displayed, in pixels."""
    resampled: bool = False
    """Whether each frame is the one shown at its time; if not, the file has the window's first frames one by one."""
    can_copy: bool = False
    """Whether the clip's stream may be copied, if its packets allow it."""
    as_stored: bool = False
    """Whether the window's part of the stream is copied from the last keyframe at or before it, whatever it shows."""
    is_whole_clip: bool = False
    """Whether the window has all frames of the clip, and its duration."""
    audio: bool = False
    """Whether the file has the clip's audio, if it has any."""

    @property
    def seconds(self) -> float:
        """Duration of the file, in seconds."""
        return float(self.frames / self.fps)
