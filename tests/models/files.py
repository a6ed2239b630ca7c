"""Files and helpers for tests of the mirror and the cache."""

from __future__ import annotations

from pathlib import Path

from caption_assets.models.variants import Variant
from caption_assets.store.root import Root
from tests.models.hub_server import COMMIT, HUB_ID, small_model

SHARD = "model-00001-of-00002.safetensors"
MODEL = Variant(HUB_ID, COMMIT)
PARTS = sorted(name for name in small_model() if name.endswith((".safetensors", ".json", ".jinja")))
"""Files of the small model that are mirrored."""


def folder_of(root: Root, variant: Variant = MODEL) -> Path:
    return Path(root.full(f"weights/{variant.folder}"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def write_model(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
