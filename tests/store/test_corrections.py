from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from caption_assets.store.corrections import (
    PUBLISHED_SCHEMA,
    Correction,
    CorrectionError,
    CorrectionLog,
    Decision,
    compact_corrections,
    corrections_folder,
    pending_corrections,
    read_correction_files,
    read_corrections,
    save_correction,
    save_corrections,
)
from caption_assets.store.root import Root
from caption_assets.store.table_file import TableError, with_file_metadata, write_table
from tests.report.windows import broken, captioned, failed, window

SHARD = "a"
STAGE = "stage2_captions"
ROW = captioned(window("a.mp4"), "A red car.", fingerprint="f")


@pytest.fixture(params=[pytest.param("local", marks=pytest.mark.fast), pytest.param("s3", marks=pytest.mark.store)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    return Root.open(str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_url"))


def decide(decision: Decision, reviewer: str = "ann", **details: str) -> Correction:
    return Correction.of(ROW, STAGE, decision, reviewer, **details)


def test_stored_correction_is_read_as_it_was_made(root: Root) -> None:
    made = decide(Decision.REWRITE, caption="A red bus.\nIt stops.")
    save_correction(root, SHARD, made)
    found = read_corrections(root, SHARD)
    assert found.history == [made]
    assert found.find(ROW, STAGE) == made
    assert found.find(ROW, "stage1_captions") is None


def test_latest_correction_holds(root: Root) -> None:
    for one in (decide(Decision.ACCEPT), decide(Decision.REJECT, "bob", reason="wrong colour")):
        save_correction(root, SHARD, one)
    found = read_corrections(root, SHARD).find(ROW, STAGE)
    assert found is not None
    assert (found.decision, found.reviewer, found.reason) == (Decision.REJECT, "bob", "wrong colour")


def test_undone_correction_uncovers_the_one_before(root: Root) -> None:
    first, second = decide(Decision.ACCEPT), decide(Decision.REJECT)
    for one in (first, second, decide(Decision.UNDO, undoes=second.correction_id)):
        save_correction(root, SHARD, one)
    assert read_corrections(root, SHARD).find(ROW, STAGE) == first
    save_correction(root, SHARD, decide(Decision.UNDO, undoes=first.correction_id))
    found = read_corrections(root, SHARD)
    assert found.present == []
    assert len(found.history) == 4


def compact(root: Root) -> None:
    compact_corrections(root, read_correction_files(root, SHARD))


def pending_shards(root: Root) -> list[str]:
    return list(pending_corrections(root))


def ids(corrections: Collection[Correction]) -> set[str]:
    return {one.correction_id for one in corrections}


@pytest.mark.fast
def test_correction_is_outdated_when_the_text_has_changed() -> None:
    made = decide(Decision.ACCEPT)
    assert not made.is_outdated(ROW)
    assert made.is_outdated(captioned(window("a.mp4"), "A blue car."))


def test_caption_of_a_window_with_another_time_range_is_not_corrected(root: Root) -> None:
    save_correction(root, SHARD, decide(Decision.ACCEPT))
    other = captioned(window("a.mp4", end_seconds=2.0), "A red car.")
    assert read_corrections(root, SHARD).find(other, STAGE) is None


@pytest.mark.fast
@pytest.mark.parametrize(
    ("decision", "details"),
    [
        (Decision.REWRITE, {}),
        (Decision.REWRITE, {"caption": " \n"}),
        (Decision.ACCEPT, {"caption": "A text."}),
        (Decision.UNDO, {}),
        (Decision.REJECT, {"undoes": "0"}),
    ],
)
def test_contradictory_decision_is_refused(decision: Decision, details: dict[str, str]) -> None:
    with pytest.raises(CorrectionError):
        decide(decision, **details)


@pytest.mark.fast
def test_unreadable_clip_cannot_be_corrected() -> None:
    with pytest.raises(CorrectionError, match="no window"):
        Correction.of(failed(broken("b.mp4")), STAGE, Decision.ACCEPT, "ann")


def test_compaction_keeps_every_correction_in_one_file(root: Root) -> None:
    made = [decide(Decision.REJECT, reason=str(number)) for number in range(5)]
    for one in made:
        save_correction(root, SHARD, one)
    compact(root)
    assert read_corrections(root, SHARD).history == made
    assert len(root.names(corrections_folder(SHARD))) == 1
    compact(root)
    assert read_corrections(root, SHARD).history == made


def test_correction_saved_after_the_files_were_read_is_not_compacted(root: Root) -> None:
    first, second = decide(Decision.ACCEPT), decide(Decision.REJECT)
    save_correction(root, SHARD, first)
    found = read_correction_files(root, SHARD)
    save_correction(root, SHARD, second)
    compact_corrections(root, found)
    assert found.corrections.history == [first]
    assert read_corrections(root, SHARD).history == [first, second]
    assert pending_shards(root) == [SHARD]


def test_shard_is_pending_until_its_corrections_are_compacted(root: Root) -> None:
    assert pending_shards(root) == []
    save_corrections(root, SHARD, [decide(Decision.ACCEPT), decide(Decision.REJECT)])
    save_correction(root, "b=c", decide(Decision.ACCEPT))
    assert pending_shards(root) == [SHARD, "b=c"]
    compact(root)
    assert pending_shards(root) == ["b=c"]
    save_correction(root, SHARD, decide(Decision.ACCEPT))
    assert pending_shards(root) == [SHARD, "b=c"]


def test_pending_corrections_have_the_time_of_the_latest_decision(root: Root) -> None:
    made = [decide(Decision.ACCEPT), decide(Decision.REJECT)]
    save_corrections(root, SHARD, made)
    first = pending_corrections(root)[SHARD]
    assert first.latest is None
    for one in made:
        save_correction(root, SHARD, one)
    second = pending_corrections(root)[SHARD]
    assert second.latest == made[1].decided_at
    assert second.version != first.version


def test_compactions_beside_reviewers_lose_nothing(root: Root) -> None:
    made = [decide(Decision.ACCEPT, reviewer) for reviewer in ("ann", "bob") for _ in range(15)]
    with ThreadPoolExecutor(8) as pool:
        saved = [pool.submit(save_correction, root, SHARD, one) for one in made]
        compacted = [pool.submit(compact, root) for _ in range(8)]
        for job in (*saved, *compacted):
            job.result()
    assert ids(read_corrections(root, SHARD).history) == ids(made)


@pytest.mark.parametrize(
    ("url", "kills"),
    [
        pytest.param("local", 3, marks=pytest.mark.faults),
        pytest.param("s3", 3, marks=pytest.mark.store),
        pytest.param("s3", 25, marks=[pytest.mark.nightly, pytest.mark.timeout(900)]),
    ],
)
def test_killed_compactions_lose_nothing(url: str, kills: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    root = Root.open(str(tmp_path) if url == "local" else request.getfixturevalue("s3_url"))
    compactor = (
        "import sys\n"
        "from caption_assets.store.corrections import compact_corrections, read_correction_files\n"
        "from caption_assets.store.root import Root\n"
        "root = Root.open(sys.argv[1])\n"
        "print(flush=True)\n"
        "while True:\n"
        f"    compact_corrections(root, read_correction_files(root, {SHARD!r}))\n"
    )
    made: list[Correction] = []
    for number in range(kills):
        with subprocess.Popen([sys.executable, "-c", compactor, root.url], stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()  # it has started
            until = time.monotonic() + 0.1 + 0.07 * (number % 5)
            while time.monotonic() < until:
                made.append(decide(Decision.REJECT, reason=str(number)))
                save_correction(root, SHARD, made[-1])
            process.send_signal(signal.SIGKILL)
        assert ids(read_corrections(root, SHARD).history) == ids(made)
    compact(root)
    assert ids(read_corrections(root, SHARD).history) == ids(made)
    assert pending_shards(root) == []


def test_import_that_is_repeated_has_no_effect(root: Root) -> None:
    made = [decide(Decision.ACCEPT), decide(Decision.REJECT)]
    save_corrections(root, SHARD, made)
    save_corrections(root, SHARD, made)
    assert read_corrections(root, SHARD).history == made
    compact(root)
    save_corrections(root, SHARD, made)
    assert read_corrections(root, SHARD).history == made


@pytest.mark.fast
def test_file_that_is_no_correction_is_named(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    path = f"{corrections_folder(SHARD)}/other.parquet"
    record = {"shard": SHARD, **asdict(decide(Decision.ACCEPT)), "decision": "praise"}
    write_table(tmp_path / "file", with_file_metadata(PUBLISHED_SCHEMA, {}), [record])
    root.upload(path, tmp_path / "file")
    with pytest.raises(TableError, match=r"other\.parquet has an invalid correction .*praise.*: restore it"):
        read_corrections(root, SHARD)
    root.write(path, b"PAR1")
    with pytest.raises(TableError, match=r"other\.parquet is damaged .*: restore it"):
        read_corrections(root, SHARD)


@pytest.mark.fast
def test_corrections_are_a_dataset_with_the_name_of_the_shard(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    for shard in ("00000", "2024-01-01"):
        save_correction(root, shard, decide(Decision.REWRITE, caption="A bus."))
    found = ds.dataset(tmp_path / "corrections").to_table(columns=["shard", "decision", "caption"]).to_pylist()
    assert found == [{"shard": shard, "decision": "rewrite", "caption": "A bus."} for shard in ("00000", "2024-01-01")]


def test_log_reads_what_was_added_and_keeps_what_was_compacted(root: Root) -> None:
    log = CorrectionLog(root, SHARD)
    made = [decide(Decision.ACCEPT), decide(Decision.REJECT)]
    save_correction(root, SHARD, made[0])
    assert log.read().history == made[:1]
    save_correction(root, SHARD, made[1])
    compact_corrections(root, read_correction_files(root, SHARD))
    assert log.read().history == made
    [merged] = root.files(corrections_folder(SHARD))
    root.remove(f"{corrections_folder(SHARD)}/{merged}")
    assert log.read().history == made
