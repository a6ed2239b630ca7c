from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import caption_assets
from caption_assets import cli
from caption_assets.store.root import Root
from tests.cli import run_cli
from tests.report.windows import captioned, publish, window

pytestmark = pytest.mark.fast

REPOSITORY = Path(__file__).parent.parent
MACHINE_COMMANDS = ("bench", "doctor", "estimate")
PROJECT_COMMANDS = (
    *MACHINE_COMMANDS,
    "compare",
    "dev",
    "gallery",
    "init",
    "link",
    "move",
    "recipe",
    "reconcile",
    "removals",
    "retire",
    "review",
    "trash",
)
COMMANDS = (
    *PROJECT_COMMANDS,
    "caption",
    "export",
    "run",
    "sample-shards",
    "show",
    "status",
    "train-sample",
    "try-prompt",
)
LAZY = ("dagster", "numpy", "pyarrow", "rich", "torch", "transformers", "vllm")


def run_process(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own; its standard error ends with the names of the imported modules."""
    code = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    code += "from caption_assets.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **variables})


def test_console_script_runs_the_command_line() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert pkgutil.resolve_name(project["scripts"]["caption-assets"]) is cli.main


def test_version_is_the_packages_and_loads_no_library() -> None:
    process = run_process("--version")
    assert (process.returncode, process.stdout) == (0, f"{caption_assets.__version__}\n")
    assert not {name.split(".")[0] for name in process.stderr.split()} & set(LAZY)


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("--help") is None
    lines = capsys.readouterr().out.splitlines()
    assert sorted(words[1] for line in lines if len(words := line.split()) > 1 and words[1] in COMMANDS) == sorted(
        COMMANDS
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(command, "--help") is None
    assert f"Usage: caption-assets {command}" in capsys.readouterr().out


def test_wrong_usage_exits_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("link") == "2"
    assert "Missing argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("a", "b"), "give two roots and a shard"), (("a", "b", "s", "--previous", "s"), "leave out the roots")],
)
def test_compare_takes_two_roots_or_previous_texts(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("compare", *arguments) == "2"
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("home", ["relative", "/nowhere"])
def test_wrong_dagster_home_is_an_error(home: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DAGSTER_HOME", home)
    monkeypatch.setenv("CAPTION_ROOT", str(tmp_path))
    expected = f"error: DAGSTER_HOME={home!r} is not the absolute path of a folder"
    assert str(run_cli("removals")).startswith(expected)


def test_error_is_one_message_and_status_1(tmp_path: Path) -> None:
    process = run_process("link", str(tmp_path), "my-shard")
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.startswith("error: ")
    assert "gallery/my-shard/index.html" in process.stderr.splitlines()[0]
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("shard", "path"), [(("my-shard",), "gallery/my-shard/index.html"), ((), "gallery/index.html")]
)
def test_link_prints_the_address_of_a_gallery_or_of_the_dashboard(
    shard: tuple[str, ...], path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / path
    page.parent.mkdir(parents=True)
    page.touch()
    assert run_cli("link", str(tmp_path), *shard) is None
    assert capsys.readouterr().out.strip() == page.as_uri()


def test_gallery_is_written_without_dagster_or_torch(tmp_path: Path) -> None:
    publish(Root.open(str(tmp_path)), [window("car.mp4")], [captioned(window("car.mp4"), "A car.")], shard="my-shard")
    process = run_process("gallery", "my-shard", CAPTION_ROOT=str(tmp_path))
    page = tmp_path / "gallery" / "my-shard" / "index.html"
    assert (process.returncode, process.stdout) == (0, f"{page.as_uri()}\n")
    assert page.exists()
    assert not {name.split(".")[0] for name in process.stderr.split()} & {"dagster", "torch", "transformers", "vllm"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "give shard keys, --all or --serve"), (("a", "--serve"), "--serve serves all galleries")],
)
def test_gallery_without_a_purpose_is_wrong_usage(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("gallery", *arguments) == "2"
    assert message in capsys.readouterr().err


def test_debug_prints_the_traceback(tmp_path: Path) -> None:
    process = run_process("--debug", "link", str(tmp_path), "my-shard")
    assert process.returncode == 1
    assert "Traceback" in process.stderr
    assert "StoreError" in process.stderr


def test_no_color_removes_colors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    clip = window("car.mp4")
    publish(root, [clip], [captioned(clip, "A car.")])
    monkeypatch.setenv("CAPTION_ROOT", str(tmp_path))
    assert "\x1b[" in CliRunner().invoke(cli.app, ["show", "shard"], color=True).output
    monkeypatch.setenv("NO_COLOR", "1")
    plain = CliRunner().invoke(cli.app, ["show", "shard"], color=True).output
    assert "\x1b[" not in plain
    assert "A car." in plain
