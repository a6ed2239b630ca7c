"""The command ``caption``: captions on standard output as windows finish, progress on standard error."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count, groupby
from pathlib import Path, PurePosixPath
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import TextIO

from caption_assets.captioning.output import TextOutput
from caption_assets.captioning.recipe_file import RecipeError
from caption_assets.captioning.stages import Stage
from caption_assets.errors import CaptionAssetsError, number_of
from caption_assets.library.captioner import SAMPLE_WARNING, Captioner, SampleModelWarning, UnknownStage
from caption_assets.library.formats import Format, json_line, subtitles, text_lines
from caption_assets.library.progress import PlainProgress, show_progress
from caption_assets.library.rows import WindowCaption
from caption_assets.settings import SettingsError
from caption_assets.store.tables import Status

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130
"""Exit statuses. The last is that of a program that SIGINT ends."""
CLEAR_BAR = b"\r\x1b[K\x1b[?25h"
"""Control codes that clear the line of the bar and show the cursor, which the bar hides."""
OUTPUT = 1
"""File descriptor of the standard output."""


class UsageError(CaptionAssetsError):
    """Arguments that do not fit the files or the recipe."""


@dataclass(frozen=True, slots=True)
class CaptionCommand:
    """The options of the command."""

    form: Format = Format.TEXT
    stage: str | None = None
    """Stage to print. Default: all; for subtitles, the last with text."""
    output: Path | None = None
    """Folder of subtitles. Default: standard output."""

    def run(self, paths: Sequence[str], open_captioner: Callable[[], Captioner]) -> int:
        """Caption files and print the captions.

        Args:
            paths: files, folders and URLs.
            open_captioner: makes the captioner.

        Returns:
            The exit status: 0 if all windows have captions, 1 if some have none, 2 if an argument or a setting is
            invalid. Ctrl-C ends the program with 130.

        Raises:
            WeightsError: if the model's weights cannot be downloaded.
            EngineError: if the engine does not start, or crashes too often.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SampleModelWarning)  # it names an argument of Python
                captioner = open_captioner()
            with _interruptible(), captioner, _reserve_output() as output:
                return self._caption(paths, captioner, output)
        except (RecipeError, SettingsError, UnknownStage, UsageError) as error:
            print(f"error: {error}", file=sys.stderr)
            return WRONG_USAGE
        except BrokenPipeError:  # the reader of the output, such as `head`, has ended
            return FAILED

    def _caption(self, paths: Sequence[str], captioner: Captioner, output: TextIO) -> int:
        clips, stage = list(captioner._find(paths)), self._stage(captioner)
        if self.form.is_subtitles and len(clips) > 1 and self.output is None:
            raise UsageError(f"the subtitles of {len(clips)} files need a folder: give one with --output")
        if self.output is not None:
            _make_folder(self.output)
        names = subtitle_names((clip.key for clip in clips), self.form)
        if captioner.recipe.variant.bundled:
            print(f"warning: {SAMPLE_WARNING.format('--model')}", file=sys.stderr)
        started, tally = time.monotonic(), _Tally()
        with show_progress(len(clips), output) as progress:
            rows = tally.count(captioner._caption(clips, stage), progress)
            if self.form.is_subtitles:
                self._write_subtitles(rows, names, progress)
            else:
                self._write_rows(rows, progress)
        print(tally.summary(len(clips), time.monotonic() - started), file=sys.stderr)
        return FAILED if tally.failed else 0

    def _stage(self, captioner: Captioner) -> Stage | None:
        """The stage to print; None for all."""
        if self.stage is not None:
            return captioner._stage(self.stage)
        if not self.form.is_subtitles:
            return None
        texts = [stage for stage in captioner.recipe.stages if isinstance(stage.output, TextOutput)]
        return texts[-1] if texts else captioner.recipe.stages[-1]

    def _write_rows(self, rows: Iterable[WindowCaption], progress: PlainProgress) -> None:
        previous = None
        for row in rows:
            progress.caption(json_line(row) if self.form is Format.JSON else "\n".join(text_lines(row, previous)))
            previous = row

    def _write_subtitles(
        self, rows: Iterable[WindowCaption], names: Mapping[str, str], progress: PlainProgress
    ) -> None:
        for clip, of_clip in groupby(rows, lambda row: row.clip):
            found = list(of_clip)
            for row in found:
                if row.error:
                    progress.message(f"{clip}: {row.error}")
            if all(row.caption is None for row in found):
                continue
            text = subtitles(found, self.form)
            if self.output is None:
                progress.caption(text.removesuffix("\n"))
            else:
                (self.output / names[clip]).write_text(text, encoding="utf-8")
                progress.caption(str(self.output / names[clip]))


def _make_folder(folder: Path) -> None:
    """Make the folder of subtitles, before anything is captioned."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the folder {folder} ({error.strerror}): give another one with --output"
        ) from error


@contextmanager
def _interruptible() -> Iterator[None]:
    """End the program at once at Ctrl-C: a start of the engine takes up to 10 s to cancel.

    The kernel kills the processes that it started. Temporary files are removed.
    """
    with TemporaryDirectory(prefix="caption-assets-") as folder:

        def end(signal_number: int, frame: object) -> None:
            rmtree(folder, ignore_errors=True)
            # Last: threads go on printing until the exit.
            os.write(sys.stderr.fileno(), CLEAR_BAR + b"interrupted\n" if sys.stderr.isatty() else b"interrupted\n")
            os._exit(INTERRUPTED)

        former, tempfile.tempdir = tempfile.tempdir, folder
        handler = signal.signal(signal.SIGINT, end)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)
            tempfile.tempdir = former


@contextmanager
def _reserve_output() -> Iterator[TextIO]:
    """Standard output for captions alone: within the block, what libraries print goes to standard error.

    The engine's processes print too, so that the file descriptor is replaced.
    """
    sys.stdout.flush()
    own = os.dup(OUTPUT)
    try:
        os.dup2(sys.stderr.fileno(), OUTPUT)
        # Not closed: after a broken pipe that would fail again. Each line is flushed.
        yield open(own, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    finally:
        sys.stdout.flush()
        os.dup2(own, OUTPUT)
        os.close(own)


@dataclass(slots=True)
class _Tally:
    """Counts of the rows so far."""

    windows: set[tuple[str, int]] = field(default_factory=set)
    clips: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    """Clips of which a row has no caption."""

    def count(self, rows: Iterable[WindowCaption], progress: PlainProgress) -> Iterator[WindowCaption]:
        """Yield and count rows."""
        for row in rows:
            self.clips.add(row.clip)
            if row.window is not None:
                self.windows.add((row.clip, row.window))
            if row.status is Status.FAILED:
                self.failed.add(row.clip)
            yield row
            progress.update(len(self.clips), len(self.windows))

    def summary(self, clips: int, seconds: float) -> str:
        """The counts in one line."""
        failed = f"; {number_of(len(self.failed), 'file')} with errors, shown above" if self.failed else ""
        return f"{number_of(clips, 'file')}, {number_of(len(self.windows), 'window')} in {seconds:.0f} s{failed}"


def subtitle_names(clips: Iterable[str], form: Format) -> dict[str, str]:
    """A file name for the subtitles of each clip: with the clip's stem, or its whole name if the stem is taken.

    Args:
        clips: paths or URLs of the clips.
        form: the format of the subtitles, which is the suffix.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for clip in clips:
        if clip in names:
            continue
        path = PurePosixPath(clip)
        numbered = (f"{path.name}-{number}.{form}" for number in count(2))
        name = next(
            name for name in chain([f"{path.stem}.{form}", f"{path.name}.{form}"], numbered) if name not in taken
        )
        taken.add(name)
        names[clip] = name
    return names
