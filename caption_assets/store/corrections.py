"""People's corrections of captions: decisions on a window and stage, which outrank the model.

They lie in ``corrections/shard=<shard>/``, one Parquet file a decision, so that concurrent reviewers never write the
same object. ``compact_corrections`` merges the files. Nothing is ever changed in place, and no file is removed before
another one contains all of its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Annotated
from uuid import uuid4

import pyarrow as pa

from caption_assets.errors import CaptionAssetsError
from caption_assets.store.disk import temporary_folder
from caption_assets.store.root import Root
from caption_assets.store.table_file import TableFile, row_schema, with_file_metadata, write_table
from caption_assets.store.tables import CaptionRow

CORRECTIONS = "corrections"
"""Folder of all corrections, relative to the root."""
PARALLEL_READS = 16
"""Number of files read concurrently. Each takes tens of milliseconds from object storage, mostly waiting."""
_COMPACTED = "compacted-"
_SUFFIX = ".parquet"


class CorrectionError(CaptionAssetsError):
    """A decision that contradicts itself."""


class Decision(StrEnum):
    """What a person decided on a caption."""

    ACCEPT = "accept"
    REJECT = "reject"
    REWRITE = "rewrite"
    UNDO = "undo"
    """Withdraws an earlier decision, so that the one before it holds again."""


@dataclass(frozen=True, slots=True)
class Correction:
    """A decision on the caption of a window and stage.

    Raises:
        CorrectionError: if a rewrite has no text, another decision has one, or only one of ``UNDO`` and ``undoes`` is
            given.
    """

    correction_id: str
    """32 hex digits, unique."""
    clip_key: str
    """As in the manifest."""
    window_index: int
    """As in the manifest."""
    window_id: str
    """As in the manifest."""
    start_seconds: float
    """As in the manifest."""
    end_seconds: float
    """As in the manifest."""
    stage: str
    """Name of the stage."""
    decision: Decision
    reviewer: str
    """Name of the person."""
    decided_at: Annotated[datetime, pa.timestamp("us", tz="UTC")]
    """Time of the decision."""
    reviewed_caption: str | None
    """The model's text that the decision is about; None if the model gave none."""
    fingerprint: str | None
    """Fingerprint of the row with that text."""
    caption: str | None = None
    """The new text of a rewrite; None for other decisions."""
    reason: str | None = None
    """Reason of a rejection, if the person gave one."""
    undoes: str | None = None
    """Id of the correction that an ``UNDO`` withdraws."""

    def __post_init__(self) -> None:
        if (self.decision is Decision.REWRITE) != bool(self.caption and self.caption.strip()):
            raise CorrectionError(
                f"the decision {self.decision.value!r} has the text {self.caption!r}: give a text to a rewrite, and to "
                "no other decision"
            )
        if (self.decision is Decision.UNDO) != (self.undoes is not None):
            raise CorrectionError(
                f"the decision {self.decision.value!r} undoes {self.undoes!r}: only an undo names another"
            )

    @classmethod
    def of(
        cls,
        row: CaptionRow,
        stage: str,
        decision: Decision,
        reviewer: str,
        *,
        caption: str | None = None,
        reason: str | None = None,
        undoes: str | None = None,
    ) -> Correction:
        """A decision made now, on a row as it is stored.

        Args:
            row: the row.
            stage: name of its stage.
            decision: the decision.
            reviewer: name of the person.
            caption: the new text, for a rewrite.
            reason: the reason, for a rejection.
            undoes: id of the correction to withdraw, for an undo.

        Raises:
            CorrectionError: see the class; also if the row is no window, because its clip is unreadable.
        """
        if row.window_index is None or row.start_seconds is None or row.end_seconds is None:
            raise CorrectionError(
                f"{row.clip_key!r} has no window, because the clip is unreadable: correct another row"
            )
        return cls(
            correction_id=uuid4().hex,
            clip_key=row.clip_key,
            window_index=row.window_index,
            window_id=row.window_id,
            start_seconds=row.start_seconds,
            end_seconds=row.end_seconds,
            stage=stage,
            decision=decision,
            reviewer=reviewer,
            decided_at=datetime.now(UTC),
            reviewed_caption=row.caption,
            fingerprint=row.fingerprint,
            caption=caption,
            reason=reason,
            undoes=undoes,
        )

    @property
    def target(self) -> tuple[str, float | None, float | None, str]:
        """What it is about: the window, its time range in seconds, and the stage."""
        return self.window_id, self.start_seconds, self.end_seconds, self.stage

    def is_outdated(self, row: CaptionRow) -> bool:
        """Whether the model's text has changed since the decision."""
        return self.reviewed_caption != row.caption


CORRECTION_SCHEMA = row_schema(Correction)
"""The columns of a file of corrections."""


class Corrections:
    """The corrections of a shard. Of several on one caption the latest holds that is not withdrawn.

    Args:
        history: all corrections, in any order.
    """

    def __init__(self, history: Iterable[Correction]) -> None:
        unique = {one.correction_id: one for one in history}
        self.history: Sequence[Correction] = sorted(
            unique.values(), key=lambda one: (one.decided_at, one.correction_id)
        )
        """All corrections, the oldest first."""
        withdrawn = {one.undoes for one in self.history}
        self._present = {
            one.target: one
            for one in self.history
            if one.decision is not Decision.UNDO and one.correction_id not in withdrawn
        }

    @property
    def present(self) -> Sequence[Correction]:
        """The corrections that hold, one for each corrected caption."""
        return list(self._present.values())

    def find(self, row: CaptionRow, stage: str) -> Correction | None:
        """The correction of a row's caption that holds, if there is one."""
        return self._present.get((row.window_id, row.start_seconds, row.end_seconds, stage))


def corrections_folder(shard: str) -> str:
    """The folder of a shard's corrections, relative to the root."""
    return f"{CORRECTIONS}/shard={shard}"


def save_correction(root: Root, shard: str, correction: Correction) -> None:
    """Store a correction as an object of its own.

    Raises:
        StoreError: if it cannot be written.
    """
    save_corrections(root, shard, [correction])


def save_corrections(root: Root, shard: str, corrections: Sequence[Correction]) -> None:
    """Store several corrections as one object, for an import. Storing the same ones twice has no effect.

    Raises:
        StoreError: if it cannot be written.
    """
    if len(corrections) == 1:
        [one] = corrections
        name = f"{one.decided_at:%Y%m%dT%H%M%S%f}-{one.correction_id}"
    else:
        name = _COMPACTED + _content_id(corrections)
    _write(root, f"{corrections_folder(shard)}/{name}{_SUFFIX}", corrections)


def read_corrections(root: Root, shard: str) -> Corrections:
    """All corrections of a shard.

    Raises:
        TableError: if a file is damaged.
        StoreError: if the root cannot be read.
    """
    found = _read_files(root, shard)
    return Corrections(one for rows in found.values() for one in rows)


def compact_corrections(root: Root, shard: str) -> None:
    """Merge a shard's files of corrections into one.

    It is safe beside reviewers, other compactions, and kills: the merged file is named by its content and written
    first, and then exactly the files that it contains are removed.

    Raises:
        TableError: if a file is damaged; nothing is changed then.
        StoreError: if the root cannot be read or written.
    """
    found = _read_files(root, shard)
    if len(found) < 2:
        return
    merged = Corrections(one for rows in found.values() for one in rows).history
    path = f"{corrections_folder(shard)}/{_COMPACTED}{_content_id(merged)}{_SUFFIX}"
    _write(root, path, merged)
    for other in found:
        if other != path:
            root.remove(other)


def _content_id(corrections: Iterable[Correction]) -> str:
    ids = sorted(one.correction_id for one in corrections)
    return sha256("\n".join(ids).encode()).hexdigest()[:24]


def _write(root: Root, path: str, corrections: Iterable[Correction]) -> None:
    with temporary_folder() as folder:
        file = folder / "corrections.parquet"
        write_table(file, with_file_metadata(CORRECTION_SCHEMA, {}), map(asdict, corrections))
        root.upload(path, file)


def _read_files(root: Root, shard: str) -> Mapping[str, Sequence[Correction]]:
    """The corrections in each file, by path. A file that a concurrent compaction removed is in its merged file."""
    while True:
        paths = [f"{corrections_folder(shard)}/{name}" for name in root.files(corrections_folder(shard))]
        try:
            with ThreadPoolExecutor(PARALLEL_READS) as pool:
                return dict(zip(paths, pool.map(lambda path: list(_read(root, path)), paths), strict=True))
        except FileNotFoundError:
            continue


def _read(root: Root, path: str) -> Iterator[Correction]:
    remedy = "restore it from a backup, or remove it, which loses its decisions"
    with TableFile.open(root.read(path), CORRECTION_SCHEMA, name=root.address(path), remedy=remedy) as file:
        for record in file.records():
            yield Correction(**{**record, "decision": Decision(record["decision"])})
