"""Files and helpers for tests of the mirror and the cache."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from shutil import copytree

from caption_assets.models.snapshot import RECORDS
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


def write_snapshot(folder: Path, model: Path, commit: str) -> None:
    """A model's files with records of their hashes, as ``snapshot_download`` writes them."""
    copytree(model, folder)
    (folder / RECORDS).mkdir(parents=True)
    for path in model.iterdir():
        record = f"{commit}\n{sha256(path.read_bytes()).hexdigest()}\n1.0\n"
        (folder / RECORDS / f"{path.name}.metadata").write_text(record)
