from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from caption_assets.library.captioner import Captioner
from caption_assets.library.command import CaptionCommand
from caption_assets.library.formats import Format
from tests.captioning.fake_engine import FakeEngine
from tests.cli import run_cli
from tests.library.fake_captioner import FakeCaptioner
from tests.videos import moving_video

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two clips of one window."""
    folder = tmp_path_factory.mktemp("clips")
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(moving_video(24, size=(64, 64 + 2 * ord(name[0]))))
    return [str(folder / "a.mp4"), str(folder / "b.mp4")]


def test_captions_are_on_standard_output_alone(clips: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    class Chatty(FakeEngine):
        def render(self, instruction: str, *, video: bool = True) -> str:
            os.write(1, b"chatter of a process")
            return instruction

    class ChattyCaptioner(FakeCaptioner):
        engine = Chatty()

    assert CaptionCommand(stage="stage1_captions").run(clips, ChattyCaptioner) == 0
    output, errors = capfd.readouterr()
    lines = output.splitlines()
    assert [lines[0], lines[3]] == clips
    assert [line.split(":")[0] for line in (lines[2], lines[5])] == ["    stage1_captions"] * 2
    assert errors.startswith("warning: the sample model knows only its toy world")
    assert "--model" in errors
    assert "2 files, 2 windows in" in errors
    assert "chatter of a process" in errors


def test_json_has_a_line_for_each_row(clips: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert CaptionCommand(Format.JSON).run([clips[0], "/nowhere.mp4"], FakeCaptioner) == 1
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(row["clip"], row["stage"], row["status"]) for row in rows] == [
        *((clips[0], stage, "ok") for stage in ("stage1_captions", "stage2_captions", "attributes", "alignment")),
        (clips[0], "short", "ok"),
        ("/nowhere.mp4", None, "failed"),
    ]


def test_failed_window_gives_status_1(clips: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    class RefusingCaptioner(FakeCaptioner):
        engine = FakeEngine(fails=lambda request: request.stage == 1)

    assert CaptionCommand(stage="stage1_captions").run(clips[:1], RefusingCaptioner) == 1
    output, errors = capfd.readouterr()
    assert "stage1_captions: failed: refused by the fake engine" in output
    assert "1 file with errors" in errors


def test_subtitles_of_one_clip_are_printed(clips: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert CaptionCommand(Format.VTT).run(clips[:1], FakeCaptioner) == 0
    assert capfd.readouterr().out.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.960\n")


def test_subtitles_of_several_clips_are_files(
    clips: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "subtitles"
    assert CaptionCommand(Format.SRT, output=folder).run([*clips, "/nowhere.mp4"], FakeCaptioner) == 1
    output, errors = capfd.readouterr()
    assert output.splitlines() == [str(folder / "a.srt"), str(folder / "b.srt")]
    assert "/nowhere.mp4: the file does not exist" in errors
    assert sorted(path.name for path in folder.iterdir()) == ["a.srt", "b.srt"]
    assert (folder / "b.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:00,960\n")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (CaptionCommand(Format.SRT), "subtitles of 2 files need a folder: give one with --output"),
        (CaptionCommand(stage="nowhere"), "no stage 'nowhere': use stage1_captions"),
        (
            CaptionCommand(Format.SRT, output=Path("/dev/null/x")),
            "the folder /dev/null/x (Not a directory)",
        ),
    ],
)
def test_wrong_option_gives_status_2(
    command: CaptionCommand, message: str, clips: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert command.run(clips, FakeCaptioner) == 2
    output, errors = capfd.readouterr()
    assert output == ""
    assert errors.startswith("error: ")
    assert message in errors


def test_wrong_setting_gives_status_2(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert CaptionCommand().run(["a.mp4"], lambda: Captioner(model="qwen9")) == 2
    monkeypatch.setenv("CAPTION_SAMPLE_FPS", "fast")
    assert CaptionCommand().run(["a.mp4"], Captioner) == 2
    errors = capfd.readouterr().err.splitlines()
    assert errors[0].startswith("error: CAPTION_MODEL='qwen9': unknown model 'qwen9'")
    assert errors[1].startswith("error: CAPTION_SAMPLE_FPS='fast'")


@pytest.mark.parametrize("arguments", [[], ["--json", "--srt", "a.mp4"], ["--output", "folder", "a.mp4"]])
def test_wrong_usage_gives_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("caption", *arguments) == "2"
    assert "caption-assets caption --help" in capsys.readouterr().err


def test_reader_that_ends_early_is_no_error() -> None:
    code = "from caption_assets.cli import main; main()"
    files = ["/nowhere.mp4"] * 2000
    with subprocess.Popen(
        [sys.executable, "-c", code, "caption", "--json", *files],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 1


SLOW = """
import sys, warnings
from caption_assets.library.command import CaptionCommand
from tests.captioning.fake_engine import FakeEngine
from tests.library.fake_captioner import FakeCaptioner

class SlowCaptioner(FakeCaptioner):
    engine = FakeEngine(lambda request: print("asked", file=sys.stderr, flush=True), seconds=600)

sys.exit(CaptionCommand().run(sys.argv[1:], SlowCaptioner))
"""


def test_interrupt_ends_the_command_and_its_processes(clips: list[str], tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *clips],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr
        while "asked" not in process.stderr.readline():
            assert process.poll() is None
        workers = psutil.Process(process.pid).children()
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr.read().splitlines()[-1] == "interrupted"
    assert process.returncode == 130
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert not list(tmp_path.iterdir())
