"""Tests of the command `caption-assets review`: what it reads, and the address that it prints."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from caption_assets.report.review import serve
from caption_assets.report.review.serve import FirstQuery, ReviewError, read_shards
from caption_assets.report.server import listen
from caption_assets.store.root import Root
from caption_assets.store.tables import TableError
from tests.cli import run_cli
from tests.report.windows import FOUR, SHARD, broken, captioned, failed, publish, publish_four, window
from tests.stages import STAGE1, STAGE2

CAR = window("car.mp4")
NAMES = [STAGE1.name, STAGE2.name]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root.open(str(tmp_path / "root"))
    last = broken("broken.mp4")
    rows = [captioned(CAR, "A car."), failed(last)]
    publish(root, [CAR, last], rows, rows, shard="b")
    publish(root, [CAR], [captioned(CAR, "A car.")], shard="a")
    return root


@pytest.mark.fast
def test_shards_are_read_in_order_and_counted(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_shards(root, None, NAMES)
    assert [(row.shard, row.stage, row.number) for row in rows] == [
        ("a", STAGE1.name, 0),
        ("b", STAGE1.name, 1),
        ("b", STAGE2.name, 2),
    ]
    assert capsys.readouterr().err.splitlines() == [
        "a: 1 caption of 1 window",
        "b: 2 captions of 1 window, without 1 unreadable clip",
    ]
    assert [row.shard for row in read_shards(root, ["b", "b"], NAMES)] == ["b", "b"]


@pytest.mark.fast
def test_unknown_shard_empty_root_and_too_many_captions_are_named(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TableError, match="no tables of shard 'c'"):
        read_shards(root, ["c"], NAMES)
    with pytest.raises(ReviewError, match="has no captions"):
        read_shards(Root.open(str(tmp_path / "empty")), None, NAMES)
    monkeypatch.setattr(serve, "MAX_ROWS", 1)
    with pytest.raises(ReviewError, match="more than 1 captions: name fewer shards"):
        read_shards(root, None, NAMES)


@pytest.mark.fast
def test_review_opens_with_the_last_stage_of_text(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish_four(root, [CAR])
    stages = [stage.name for stage in FOUR.stages]
    rows = read_shards(root, [SHARD], stages)
    assert FirstQuery().parameters(rows, stages) == {"stage": "dense_captions"}
    assert FirstQuery("all", "random", 5, 3).parameters(rows, stages) == {"order": "random", "sample": "5", "seed": "3"}
    with pytest.raises(ReviewError, match="no captions of stage 'shorts'; did you mean short"):
        FirstQuery("shorts").parameters(rows, stages)


def test_command_serves_the_printed_address_until_it_is_interrupted(root: Root) -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-c", "from caption_assets.cli import main; main()", "review", "b"]
    options = ["--as", "ann", "--port", str(port), "--order", "worst"]
    environment = {**os.environ, "CAPTION_ROOT": root.url}
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.fullmatch(
            rf"Review of {root.url} as ann, until Ctrl-C: (http://127.0.0.1:{port}/\?token=\S+)\n", line
        )
        assert found, line
        with httpx2.Client(follow_redirects=True, trust_env=False) as client:
            page = client.get(found[1])
            assert page.url.query == f"stage={STAGE2.name}&order=worst".encode()
            session = client.get(f"http://127.0.0.1:{port}/api/session")
            assert session.json()["reviewer"] == "ann"
        assert "is in use by process" in str(run_cli("review", "--port", str(port)))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
    assert process.returncode in (0, 130, -signal.SIGINT)


@pytest.mark.fast
@pytest.mark.parametrize("arguments", [["--order", "best"], ["--sample", "0"], ["--as", " "]])
def test_wrong_options_are_wrong_usage(arguments: list[str]) -> None:
    assert run_cli("review", *arguments) == "2"
