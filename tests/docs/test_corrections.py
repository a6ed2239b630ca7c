"""The snippets of ``docs/how-to/corrections.md`` that read corrections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caption_assets.store.corrections import (
    Correction,
    Decision,
    compact_corrections,
    read_correction_files,
    save_correction,
    save_corrections,
)
from caption_assets.store.root import Root
from tests.docs.snippets import SNIPPETS
from tests.report.windows import captioned, window

pytestmark = pytest.mark.fast

CAR, VAN = captioned(window("car.mp4"), "A car."), captioned(window("van.mp4"), "A van.")


def run(name: str) -> Any:
    """The variable that the snippet with that name assigns."""
    [snippet] = [one for one in SNIPPETS if one.page.endswith("how-to/corrections.md") and f"\n{name} = " in one.text]
    found: dict[str, Any] = {}
    exec(snippet.text, found)
    return found[name]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    """A root with six decisions of two shards, as after a compaction that was killed before it removed a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    root = Root.open(str(tmp_path / "captions"))
    accept, reject = (Correction.of(CAR, "stage1_captions", one, "ann") for one in (Decision.ACCEPT, Decision.REJECT))
    undo = Correction.of(CAR, "stage1_captions", Decision.UNDO, "ann", undoes=reject.correction_id)
    save_corrections(root, "00000", [accept, reject, undo])
    for decision in (Decision.REJECT, Decision.ACCEPT):
        save_correction(root, "00000", Correction.of(VAN, "stage1_captions", decision, "bob"))
    rewrite = Correction.of(CAR, "stage1_captions", Decision.REWRITE, "ann", caption="A bus.")
    save_correction(root, "2024-01-01", rewrite)
    compact_corrections(root, read_correction_files(root, "00000"))
    save_corrections(root, "00000", [accept, reject, undo])
    return root


def test_snippet_reads_the_corrections_that_hold(root: Root) -> None:
    found = run("present").sort_values(["shard", "clip_key"])
    columns = ["shard", "clip_key", "decision", "reviewer"]
    assert found[columns].values.tolist() == [
        ["00000", "car.mp4", "accept", "ann"],
        ["00000", "van.mp4", "accept", "bob"],
        ["2024-01-01", "car.mp4", "rewrite", "ann"],
    ]
    for shard in ("00000", "2024-01-01"):
        present = {one.correction_id for one in read_correction_files(root, shard).corrections.present}
        assert set(found[found["shard"] == shard]["correction_id"]) == present


def test_snippet_reads_all_decisions(root: Root) -> None:
    history = run("history").to_pylist()
    assert len({row["correction_id"] for row in history}) == 6
    assert {row["shard"] for row in history} == {"00000", "2024-01-01"}
