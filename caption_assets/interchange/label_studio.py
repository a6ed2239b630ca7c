"""Label Studio: the labeling configuration of a recipe, and the tasks of a shard with the captions as predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from caption_assets.captioning.output import ChoiceOutput
from caption_assets.captioning.stages import Stage
from caption_assets.checks.stored_tables import StoredShard
from caption_assets.errors import CaptionAssetsError
from caption_assets.sources.manifest import span_of
from caption_assets.store.corrections import Decision
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, CaptionRow, ManifestRow, Status, extent, stored_shards

VIDEO = "video"
"""Name of the video in the configuration, and of its URL in a task."""
DECISIONS = (Decision.ACCEPT, Decision.REJECT)
"""The choices of a decision. A rewrite is an edited text."""


class InterchangeError(CaptionAssetsError):
    """A shard or file that cannot be exchanged with an annotation tool."""


def caption_control(stage: str) -> str:
    """Name of the control with a stage's text."""
    return f"{stage}-caption"


def decision_control(stage: str) -> str:
    """Name of the control with the decision on a stage's text."""
    return f"{stage}-decision"


def reason_control(stage: str) -> str:
    """Name of the control with the reason of a rejection."""
    return f"{stage}-reason"


def labeling_config(stages: Sequence[Stage]) -> str:
    """The labeling configuration: the video, and for each stage its text, a decision, and a reason."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Header", value="$clip", size="4")
    ElementTree.SubElement(view, "Video", name=VIDEO, value=f"${VIDEO}")
    for stage in stages:
        ElementTree.SubElement(view, "Header", value=stage.name, size="5")
        if isinstance(stage.output, ChoiceOutput):
            _choices(view, caption_control(stage.name), stage.output.choices)
        else:
            _text_area(view, caption_control(stage.name), rows="6")
        _choices(view, decision_control(stage.name), DECISIONS)
        _text_area(view, reason_control(stage.name), rows="1", placeholder="Reason of a rejection")
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def _choices(view: ElementTree.Element, name: str, values: Sequence[str]) -> None:
    control = ElementTree.SubElement(
        view, "Choices", name=name, toName=VIDEO, choice="single-radio", showInline="true", required="false"
    )
    for value in values:
        ElementTree.SubElement(control, "Choice", value=value)


def _text_area(view: ElementTree.Element, name: str, **attributes: str) -> None:
    shared = {"name": name, "toName": VIDEO, "editable": "true", "maxSubmissions": "1", "required": "false"}
    ElementTree.SubElement(view, "TextArea", {**shared, **attributes})


@dataclass(frozen=True, slots=True)
class VideoLinks:
    """The URLs under which a Label Studio server plays the clips of a source."""

    source: Root
    document_root: str = "/"
    """Folder of local files that the server may serve: its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""
    signed_seconds: float | None = None
    """Lifetime of presigned URLs of objects; None for their ``s3://`` URIs, which the server's own storage resolves."""

    def of(self, row: ManifestRow) -> str:
        """The URL of a window: that of its clip, with the window's time range as a media fragment.

        Raises:
            InterchangeError: if the clip has no URL, because it is in a tar, or is outside the document root.
            StoreError: if the store cannot sign.
        """
        if row.offset:
            raise InterchangeError(
                f"{row.clip_key!r} is in the tar {row.uri}, and so has no URL: extract the tar to a folder of clips, "
                "and caption that as a shard"
            )
        return f"{self._address(row)}#t={row.start_seconds:g},{row.end_seconds:g}"

    def _address(self, row: ManifestRow) -> str:
        url = str(span_of(self.source, row).url)
        if url.startswith("file://") or "://" not in url:
            return self._local(url.removeprefix("file://"))
        if self.signed_seconds is not None and "://" not in row.uri:
            return self.source.signed_url(row.uri, self.signed_seconds)
        return url

    def _local(self, path: str) -> str:
        try:
            relative = Path(path).absolute().relative_to(Path(self.document_root).absolute())
        except ValueError:
            raise InterchangeError(
                f"the clip {path} is outside the document root {self.document_root}: give a folder that contains it"
            ) from None
        return f"/data/local-files/?d={quote(relative.as_posix())}"


def tasks(stored: StoredShard, stages: Sequence[Stage], links: VideoLinks) -> Iterator[dict[str, Any]]:
    """A task for each window of a shard, with its captions, and people's present rewrites, as a prediction.

    Raises:
        InterchangeError: see ``VideoLinks.of``.
        TableError: if a table is missing or damaged.
        StoreError: if the root cannot be read.
    """
    rows = {stage.name: {extent(row): row for row in stored.table(stage.name).rows} for stage in stages}
    for window in stored.manifest:
        captions = {name: found[extent(window)] for name, found in rows.items() if extent(window) in found}
        if window.status is Status.OK:
            yield _task(stored, stages, window, captions, links.of(window))


def write_tasks(
    root: Root, shards: Sequence[str] | None, stages: Sequence[Stage], links: VideoLinks, folder: Path
) -> Iterator[tuple[Path, int]]:
    """Write the configuration, and a file of tasks for each shard; returns each file with its number of tasks.

    Args:
        root: the root.
        shards: keys of the shards; None for all that have a manifest.
        stages: the stages to show.
        links: the URLs of the videos.
        folder: the folder to write.

    Raises:
        InterchangeError: if a clip has no URL.
        TableError: if a table is missing or damaged.
        StoreError: if the root cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.xml").write_text(labeling_config(stages), encoding="utf-8")
    for shard in shards or sorted(stored_shards(root, CLIP_MANIFEST)):
        found = list(tasks(StoredShard(root, shard), stages, links))
        file = folder / f"{shard}.json"
        file.write_text(json.dumps(found, ensure_ascii=False, indent=1), encoding="utf-8")
        yield file, len(found)


def _task(
    stored: StoredShard, stages: Sequence[Stage], window: ManifestRow, captions: Mapping[str, CaptionRow], url: str
) -> dict[str, Any]:
    corrections = {name: stored.corrections.find(row, name) for name, row in captions.items()}
    texts = {
        name: (found.caption if (found := corrections[name]) else None) or row.caption for name, row in captions.items()
    }
    return {
        "data": {
            VIDEO: url,
            "clip": f"{stored.shard} / {window.clip_key}, {window.start_seconds:.1f} to {window.end_seconds:.1f} s",
            "shard": stored.shard,
            "clip_key": window.clip_key,
            "window_index": window.window_index,
            "window_id": window.window_id,
            "start_seconds": window.start_seconds,
            "end_seconds": window.end_seconds,
            "captions": {name: row.caption for name, row in captions.items()},
            "shown": texts,
            "fingerprints": {name: row.fingerprint for name, row in captions.items()},
        },
        "predictions": [
            {
                "model_version": ", ".join(dict.fromkeys(filter(None, (row.model for row in captions.values())))),
                "result": [_region(stage, text) for stage in stages if (text := texts.get(stage.name)) is not None],
            }
        ],
    }


def _region(stage: Stage, text: str) -> dict[str, Any]:
    kind = "choices" if isinstance(stage.output, ChoiceOutput) else "textarea"
    name = caption_control(stage.name)
    value = {"choices" if kind == "choices" else "text": [text]}
    return {"id": name, "from_name": name, "to_name": VIDEO, "type": kind, "value": value}
