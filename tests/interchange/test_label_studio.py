from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from xml.etree import ElementTree

import pytest

from caption_assets.checks.stored_tables import StoredShard
from caption_assets.interchange.label_studio import InterchangeError, VideoLinks, labeling_config, tasks
from caption_assets.store.corrections import Correction, Decision, read_corrections, save_correction
from caption_assets.store.root import Root
from tests.cli import run_cli
from tests.report.windows import FOUR, SHARD, broken, captioned, failed, publish, publish_four, window
from tests.stages import STAGE1, STAGE2, STAGES

FAST = pytest.mark.fast
CAR, VAN = (
    window("car.mp4", uri="a/car 1.mp4"),
    window("van.mp4", 1, uri="a/van.mp4", start_seconds=4.0, end_seconds=7.5),
)
RED = captioned(CAR, "A red car.", fingerprint="f")
SDK = "label-studio-sdk==2.1.2"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    """A root with two windows, one of which failed, and an unreadable clip."""
    monkeypatch.setenv("CAPTION_ROOT", str(tmp_path))
    monkeypatch.setenv("CAPTION_RECIPE", "general")
    root = Root.open(str(tmp_path))
    torn = broken("torn.mp4")
    publish(
        root,
        [CAR, VAN, torn],
        [captioned(CAR, "A car."), captioned(VAN, "A van."), failed(torn)],
        [RED, failed(VAN), failed(torn)],
    )
    return root


def made(root: Root) -> list[dict[str, Any]]:
    return list(tasks(StoredShard(root, SHARD), STAGES, VideoLinks(Root.open(f"{root.url}/source"), root.url)))


def annotated(
    task: dict[str, Any], number: int, at: str = "2026-11-29T23:00:00.000000Z", **answers: str
) -> dict[str, Any]:
    """A task as Label Studio exports it, with the given answers by control."""
    result = [
        {
            "id": f"r{name}",
            "from_name": name.replace("_captions_", "_captions-"),
            "to_name": "video",
            "type": kind,
            "value": {"text" if kind == "textarea" else "choices": [answer]},
            "origin": "manual",
        }
        for name, answer in answers.items()
        for kind in ["choices" if name.endswith("decision") else "textarea"]
    ]
    annotation = {
        "id": number,
        "completed_by": {"id": 3, "email": "ann@example.com"},
        "was_cancelled": False,
        "result": result,
        "created_at": "2026-11-29T22:00:00.000000Z",
        "updated_at": at,
    }
    return {**task, "id": number, "project": 7, "annotations": [annotation]}


def imported(root: Root, *exported: dict[str, Any]) -> list[Correction]:
    """The corrections of the shard after an import."""
    file = Path(root.url) / "export.json"
    file.write_text(json.dumps(exported))
    assert run_cli("label-studio", "import", str(file)) is None
    return list(read_corrections(root, SHARD).history)


@FAST
def test_task_has_the_video_of_the_window_and_its_captions(root: Root) -> None:
    car, van = made(root)
    assert car["data"]["video"] == "/data/local-files/?d=source/a/car%201.mp4#t=0,4"
    assert van["data"]["video"] == "/data/local-files/?d=source/a/van.mp4#t=4,7.5"
    assert [region["value"] for region in car["predictions"][0]["result"]] == [
        {"text": ["A car."]},
        {"text": ["A red car."]},
    ]
    assert [region["from_name"] for region in van["predictions"][0]["result"]] == ["stage1_captions-caption"]


@FAST
def test_clip_in_an_s3_source_has_its_uri(root: Root) -> None:
    links = VideoLinks(Root.open("s3://bucket/source"))
    assert links.of(CAR) == "s3://bucket/source/a/car 1.mp4#t=0,4"


@pytest.mark.store
def test_signed_url_of_a_clip_opens_without_credentials(s3_url: str) -> None:
    source = Root.open(s3_url)
    source.write("a/car 1.mp4", b"a car")
    url, _, place = VideoLinks(source, signed_seconds=60).of(CAR).partition("#")
    assert place == "t=0,4"
    with urlopen(url) as response:
        assert response.read() == b"a car"


@FAST
def test_clip_without_a_url_is_an_error(root: Root) -> None:
    with pytest.raises(InterchangeError, match=r"is in the tar a\.tar, and so has no URL: extract"):
        VideoLinks(root).of(window("car.mp4", uri="a.tar", offset=512))
    with pytest.raises(InterchangeError, match="is outside the document root /media"):
        VideoLinks(root, "/media").of(CAR)


@FAST
def test_configuration_has_controls_for_each_output() -> None:
    view = ElementTree.fromstring(labeling_config(FOUR.stages))
    kinds = {control.get("name"): control.tag for control in view if control.get("toName")}
    assert kinds["attributes-caption"] == "TextArea"
    assert kinds["alignment-caption"] == "Choices"
    assert len(kinds) == 3 * len(FOUR.stages)


@FAST
def test_command_writes_configuration_and_tasks(root: Root, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    options = "--output", str(folder), "--stage", "stage2_captions", "--document-root", str(tmp_path)
    assert run_cli("label-studio", "export", SHARD, *options) is None
    assert capsys.readouterr().out == f"{folder / SHARD}.json: 2 tasks\n"
    assert len(json.loads((folder / f"{SHARD}.json").read_text())) == 2
    assert "stage1" not in (folder / "config.xml").read_text()


@FAST
def test_decisions_become_corrections(root: Root) -> None:
    car, van = made(root)
    stage2 = {"stage2_captions_decision": "reject", "stage2_captions_reason": "no red"}
    rewritten = annotated(van, 2, stage2_captions_caption="A white van.\nIt stops.", stage1_captions_caption="A van.")
    first, second, third = imported(root, annotated(car, 1, stage1_captions_decision="accept", **stage2), rewritten)
    by_stage = {(one.clip_key, one.stage): one for one in (first, second, third)}
    assert by_stage["car.mp4", STAGE1.name].decision is Decision.ACCEPT
    reject = by_stage["car.mp4", STAGE2.name]
    assert (reject.decision, reject.reason, reject.reviewer) == (Decision.REJECT, "no red", "ann@example.com")
    assert (reject.reviewed_caption, reject.fingerprint) == ("A red car.", "f")
    assert reject.decided_at.isoformat() == "2026-11-29T23:00:00+00:00"
    rewrite = by_stage["van.mp4", STAGE2.name]
    assert (rewrite.caption, rewrite.reviewed_caption) == ("A white van.\nIt stops.", None)
    assert read_corrections(root, SHARD).find(RED, STAGE2.name) == reject


@FAST
def test_repeated_import_adds_nothing_and_a_later_edit_holds(root: Root) -> None:
    car, _ = made(root)
    once = annotated(car, 1, stage2_captions_decision="reject")
    assert imported(root, once) == imported(root, once)
    later = annotated(car, 1, "2026-11-30T08:00:00.000000Z", stage2_captions_caption="A blue car.")
    assert len(imported(root, later)) == 2
    found = read_corrections(root, SHARD).find(RED, STAGE2.name)
    assert found
    assert found.caption == "A blue car."


@FAST
def test_skipped_and_undecided_annotations_are_no_corrections(root: Root) -> None:
    car, _ = made(root)
    skipped = annotated(car, 1, stage2_captions_decision="reject")
    skipped["annotations"][0]["was_cancelled"] = True
    assert imported(root, skipped, annotated(car, 2, stage2_captions_caption="A red car.")) == []


@FAST
def test_accepting_an_earlier_rewrite_keeps_its_text(root: Root) -> None:
    save_correction(root, SHARD, Correction.of(RED, STAGE2.name, Decision.REWRITE, "bob", caption="A blue car."))
    car, _ = made(root)
    assert car["predictions"][0]["result"][1]["value"] == {"text": ["A blue car."]}
    at = "2036-11-30T08:00:00.000000Z"
    *_, last = imported(root, annotated(car, 1, at, stage2_captions_decision="accept"))
    assert (last.decision, last.caption) == (Decision.REWRITE, "A blue car.")


@FAST
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "export the project as JSON"),
        ("{}", "is not a list of tasks"),
        ('[{"id": 5, "data": {"video": "x"}, "annotations": [{"result": []}]}]', "task 5 of"),
    ],
)
def test_other_files_are_errors(root: Root, tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "export.json"
    file.write_text(content)
    assert message in str(run_cli("label-studio", "import", str(file)))


@pytest.mark.nightly
@pytest.mark.timeout(900)  # the first call installs 500 MB
def test_label_studio_accepts_configuration_tasks_and_annotations(
    root: Root, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    python = label_studio(Path(request.config.cache.mkdir("label-studio")))
    publish_four(root, [CAR])
    links = VideoLinks(Root.open(f"{root.url}/source"))
    made = list(tasks(StoredShard(root, SHARD), FOUR.stages, links))
    decided = annotated(made[0], 1)
    regions = made[0]["predictions"][0]["result"]
    reject = {
        "id": "d",
        "from_name": "short-decision",
        "to_name": "video",
        "type": "choices",
        "value": {"choices": ["reject"]},
    }
    decided["annotations"][0]["result"] = [*regions, reject]
    files = []
    for name, text in (("c", labeling_config(FOUR.stages)), ("t", json.dumps(made)), ("a", json.dumps([decided]))):
        files.append(str(tmp_path / name))
        Path(files[-1]).write_text(text)
    check = Path(__file__).with_name("label_studio_check.py")
    done = subprocess.run([python, "-I", check, *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "12 controls\n"), done.stderr
    assert len(imported(root, decided)) == 1


def label_studio(folder: Path) -> str:
    """The Python of an environment with Label Studio's package, which the first call makes."""
    python = folder / "venv" / "bin" / "python"
    if not python.exists():
        venv.create(folder / "venv", with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", SDK], check=True)
    return str(python)
