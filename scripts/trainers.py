"""Check that trainers' own loaders read the exports: webdataset, Megatron Energon, ms-swift and LLaMA-Factory.

    python -m scripts.trainers [--cache FOLDER]

The loaders run in an environment of their own, which the first call makes from PyPI in the cache folder, on top of the
packages of this one. They get two shards of real clips. The index of Energon is also compared with that of its own
command, ``energon prepare``.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import os
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import tempfile
import types
import venv
from dataclasses import replace
from pathlib import Path
from typing import Any

from caption_assets.export.config import CutConfig, Format
from caption_assets.export.dataset_shard import export_shard
from caption_assets.export.index import DATASET
from caption_assets.export.merged import merge_dataset
from tests.export.shards import LINES
from tests.export.trainer_data import FRAMES, TEXTS, captioned_root

# Installed without their dependencies: only what loading a dataset imports.
PACKAGES = (
    *("webdataset==1.0.2", "megatron-energon==7.4.1", "ms-swift==4.6.0", "llamafactory==0.9.5"),
    *("accelerate", "addict", "attrdict", "bracex", "braceexpand", "dacite", "deprecation", "filetype", "json_repair"),
    *("jsonpath-ng", "jsonschema", "jsonschema-specifications", "lark", "mfusepy", "modelscope", "modelscope-hub"),
    *(
        "multi-storage-client",
        "omegaconf",
        "antlr4-python3-runtime",
        "opentelemetry-api",
        "opentelemetry-sdk",
        "opentelemetry-semantic-conventions",
        "peft",
    ),
    *("rapidyaml", "referencing", "rpds-py", "trl", "wcmatch", "xattr"),
)
FORMATS = (Format.WEBDATASET, Format.ENERGON, Format.CHAT)


def main() -> None:
    """Export in each format, and load it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "caption-assets-trainers")
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        load(options.load[0], Path(options.load[1]))
        return
    python = _environment(options.cache)
    with tempfile.TemporaryDirectory() as folder:
        for format in FORMATS:
            dataset = _export(Path(folder, format), format)
            command = [str(python), "-m", "scripts.trainers", "--load", format, str(dataset)]
            subprocess.run(command, check=True, cwd=Path(__file__).parent.parent)


def load(format: str, dataset: Path) -> None:
    """Load an exported dataset with each loader of its format; runs in the environment of the loaders."""
    _hide_packages()
    for loader in {"webdataset": [_webdataset], "energon": [_energon], "chat": [_swift, _llama_factory]}[format]:
        found = sorted(loader(dataset))
        if found != sorted(TEXTS):
            raise SystemExit(f"{loader.__name__} found {found} instead of {sorted(TEXTS)}")
        print(f"{loader.__name__.strip('_')}: {len(found)} texts", flush=True)


def _webdataset(dataset: Path) -> list[str]:
    import webdataset

    tars = sorted(str(path) for path in dataset.glob("data/*/*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert all(sample["mp4"] for sample in samples)
    return [window["stage2_caption"] for sample in samples for window in sample["json"]["windows"]]


def _energon(dataset: Path) -> list[str]:
    from megatron import energon

    @energon.stateless  # type: ignore[untyped-decorator]
    def cook(sample: dict[str, Any]) -> Any:
        assert sample["mp4"].get_metadata().video_num_frames == 2 * FRAMES
        return energon.TextSample(
            **energon.basic_sample_keys(sample),
            text="\n".join(window["stage2_caption"] for window in sample["json"]["windows"]),
        )

    class Encoder(energon.DefaultTaskEncoder):  # type: ignore[misc]
        cookers = [energon.Cooker(cook)]  # noqa: RUF012

    _compare_with_prepare(dataset)
    workers = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    found = energon.get_val_dataset(
        dataset, split_part="train", worker_config=workers, batch_size=1, task_encoder=Encoder()
    )
    return [text for batch in energon.get_loader(found) for text in batch.text[0].split("\n")]


def _compare_with_prepare(dataset: Path) -> None:
    """Compare the index with that of ``energon prepare``."""
    from megatron.energon.flavors import BaseWebdatasetFactory

    copy = dataset.with_name("prepared")
    shutil.copytree(dataset, copy, ignore=shutil.ignore_patterns(".nv-meta", "*.idx"))
    tars = sorted(str(path.relative_to(copy)) for path in copy.glob("data/*/*.tar"))
    BaseWebdatasetFactory.prepare_dataset(copy, tars, split_parts_ratio=[("train", 1)], workers=1)
    for tar in tars:
        assert (dataset / f"{tar}.idx").read_bytes() == (copy / f"{tar}.idx").read_bytes()
    for table in ("samples", "sample_parts"):
        rows = []
        for folder in (dataset, copy):
            with sqlite3.connect(folder / ".nv-meta" / "index.sqlite") as index:
                rows.append(index.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3").fetchall())
        assert rows[0] == rows[1]


def _swift(dataset: Path) -> list[str]:
    from swift.dataset import load_dataset

    found, _ = load_dataset([str(dataset / "chat.jsonl")], num_proc=1)
    assert all(Path(video).is_file() for row in found for video in row["videos"])
    return [row["messages"][-1]["content"] for row in found]


def _llama_factory(dataset: Path) -> list[str]:
    from llamafactory.data.loader import _get_merged_dataset
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import Seq2SeqTrainingArguments

    data = DataArguments(dataset="captioned_dataset", dataset_dir=str(dataset))
    training = Seq2SeqTrainingArguments(output_dir=str(dataset / "out"), use_cpu=True)
    found: Any = _get_merged_dataset(["captioned_dataset"], ModelArguments("none"), data, training, "sft")
    assert all(Path(video).is_file() for row in found for video in row["_videos"])
    return [row["_response"][0]["content"] for row in found]


def _hide_packages() -> None:
    """Hide packages that loading a dataset does not need, and that may be missing or of another build."""
    os.environ["DISABLE_VERSION_CHECK"] = "1"  # of LLaMA-Factory, for transformers
    sys.modules["torchvision"] = None  # type: ignore[assignment]
    audio = types.ModuleType("torchaudio")
    audio.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = audio


def _export(folder: Path, format: Format) -> Path:
    folder.mkdir()
    root = captioned_root(folder)
    dataset = root.address(DATASET)
    paths = dataset if format.has_full_paths else None
    how = replace(LINES, format=format, cut=CutConfig(format.default_cut), folder=paths)
    for shard in ("one", "two"):
        export_shard(root, root, shard, how)
    merge_dataset(root, how)
    return Path(dataset)


def _environment(cache: Path) -> Path:
    """The Python of the loaders' environment, which the first call makes."""
    folder = cache / "venv"
    python = folder / "bin" / "python"
    done = folder / "done"
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES], check=True)
        purelib = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        (purelib / "ours.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        done.touch()
    return python


if __name__ == "__main__":
    main()
