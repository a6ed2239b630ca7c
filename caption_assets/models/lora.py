"""LoRA adapters: resolving the setting, parsing the configuration, checking the fit with a model's weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from caption_assets.models.checkpoint import HUB_ID, REVISION, Lora, as_folder, is_folder
from caption_assets.models.checkpoint_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from caption_assets.models.model_config import parse_config
from caption_assets.models.variants import UnknownModel
from caption_assets.models.weights import WeightsError
from caption_assets.store.failure import url_has_credentials

VISION_MODULES = frozenset({"visual", "vision_tower", "vision_model", "multi_modal_projector", "mlp1", "merger"})
"""Module names of the vision tower and its connection to the language model."""
_WRAPPERS = frozenset({"base_model", "model", "language_model"})
"""Container modules, which only some releases of transformers include in the names of weights."""
_FACTOR = re.compile(r"\.lora_(A|B)(\.default)?\.weight$")
_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
HIDDEN = "a URL that is hidden because it contains credentials"
"""Replacement for such a base model in messages."""
_CACHED = re.compile(r"models--(?P<id>[^/]+)/snapshots/[^/]+$")
"""A model's folder in the Hub's local cache."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The content of ``adapter_config.json``."""

    rank: int
    """The largest rank of its modules."""
    base: str | None
    """Hub id or folder of the model that it was trained on, if given; ``HIDDEN`` for a URL with credentials."""


def find_lora(name: str, revision: str | None) -> Lora:
    """The adapter that the settings name.

    Args:
        name: a Hub id (``org/name``) or a folder (``/…``, ``./…``, ``~/…`` or ``s3://…``).
        revision: commit of an adapter given by Hub id; for a folder, any word that identifies its contents.

    Raises:
        UnknownModel: if the name is neither, or the revision is missing.
    """
    if not is_folder(name) and not HUB_ID.fullmatch(name):
        raise UnknownModel(
            f"unknown adapter {name!r}: give a Hub id (org/name) or a folder (/path/to/it or s3://bucket/path)"
        )
    if revision is None or not REVISION.fullmatch(revision):
        raise UnknownModel(
            f"the adapter {name!r} needs CAPTION_LORA_REVISION (it is {revision!r}): the commit on the Hub, or for a "
            "folder any word that identifies its contents"
        )
    if not is_folder(name):
        return Lora(name, revision)
    path, hub_id = as_folder(name)
    return Lora(hub_id, revision, path=path)


def parse_adapter_config(content: bytes, address: str) -> AdapterConfig:
    """Parse an ``adapter_config.json``.

    Raises:
        WeightsError: if it is not the configuration of a LoRA adapter.
    """
    found = parse_config(content, address)
    kind, base = found.get("peft_type", "LORA"), found.get("base_model_name_or_path")
    ranks: list[Any] = [found.get("r"), *_values(found.get("rank_pattern"))]
    if kind != "LORA" or not all(type(rank) is int and rank > 0 for rank in ranks):
        raise WeightsError(
            f"{address} is not a LoRA adapter (peft_type {kind!r}, r {found.get('r')!r}), and vLLM applies no other "
            "kind: merge the adapter into its model, and set CAPTION_MODEL to the result"
        )
    if not isinstance(base, str) or not base:
        return AdapterConfig(max(ranks), None)
    return AdapterConfig(max(ranks), HIDDEN if url_has_credentials(base) else base)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The configuration of an adapter in a local folder.

    Raises:
        WeightsError: if it cannot be read, or is invalid.
    """
    path = folder / ADAPTER_CONFIG
    try:
        return parse_adapter_config(path.read_bytes(), str(path))
    except OSError as error:
        raise WeightsError(f"cannot read {path} ({error.strerror}): download the adapter again") from error


def is_same_base(base: str | None, hub_id: str) -> bool:
    """Whether the model that an adapter was trained on has the name of the model in use, whoever publishes it."""
    return base is None or _plain_name(base) == _plain_name(hub_id)


def check_fit(adapter: Path, model: Path) -> tuple[str, ...]:
    """Check an adapter against the model's weights by the headers of their files.

    vLLM silently ignores an adapter's modules that the model does not have.

    Args:
        adapter: its folder.
        model: the model's folder.

    Returns:
        The adapter's modules that the model does not have. Experts of a mixture are not checked: checkpoints fuse them.

    Raises:
        WeightsError: if the model has none of its modules, or one has a different size.
    """
    shapes = dict(_shapes(model))
    unknown, found = [], 0
    for module, (inputs, outputs) in _adapted(adapter).items():
        if _is_expert(module):
            found += 1
            continue
        shape = shapes.get(_bare(module))
        if shape is None:
            unknown.append(module)
            continue
        found += 1
        for size, expected in ((inputs, shape[1:]), (outputs, shape[:1])):
            if size is not None and expected and (size,) != expected:
                raise WeightsError(f"the size of its {module} is {size}, but the model's is {expected[0]}")
    if not found:
        raise WeightsError(
            f"the model has none of its {len(unknown)} modules, such as {unknown[0]}"
            if unknown
            else f"its {ADAPTER_WEIGHTS} contains no LoRA weights"
        )
    return tuple(sorted(unknown))


def adapts_vision(adapter: Path) -> bool:
    """Whether an adapter changes the vision tower or its connection to the language model."""
    return any(VISION_MODULES & set(module.split(".")) for module in _adapted(adapter))


def _adapted(adapter: Path) -> dict[str, tuple[int | None, int | None]]:
    """Input and output size of each module that an adapter changes, by its name in the adapter; None if not stored."""
    found: dict[str, tuple[int | None, int | None]] = {}
    for name, shape, _ in _tensors([adapter / ADAPTER_WEIGHTS]):
        if factor := _FACTOR.search(name):
            module = name[: factor.start()]
            inputs, outputs = found.get(module, (None, None))
            found[module] = (shape[-1], outputs) if factor[1] == "A" else (inputs, shape[0])
    return found


def _shapes(model: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The modules of a model with weights: bare name, and shape if the weight is a float matrix, else ``()``."""
    for name, shape, dtype in _tensors(sorted(model.glob("*.safetensors"))):
        module, _, parameter = name.rpartition(".")
        if parameter == "weight" and len(shape) == 2 and dtype in _FLOATS:
            yield _bare(module), shape
        elif parameter in ("qweight", "weight_packed") or (parameter == "weight" and len(shape) > 1):
            yield _bare(module), ()


def _tensors(paths: Iterable[Path]) -> Iterator[tuple[str, tuple[int, ...], str]]:
    for path in paths:
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    tensor = file.get_slice(name)
                    yield name, tuple(tensor.get_shape()), tensor.get_dtype()
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"cannot read {path} ({error}): download it again") from error


def _bare(module: str) -> str:
    return ".".join(part for part in module.split(".") if part not in _WRAPPERS)


def _is_expert(module: str) -> bool:
    return "experts" in module.split(".")


def _plain_name(name: str) -> str:
    """The last part of a Hub id or folder, in lower case; ModelScope's cache writes ``___`` for a dot."""
    if cached := _CACHED.search(name.rstrip("/")):
        return cached["id"].rsplit("--", 1)[-1].casefold()
    return name.rstrip("/").rsplit("/", 1)[-1].replace("___", ".").casefold()


def _values(pattern: Any) -> list[Any]:
    return list(pattern.values()) if isinstance(pattern, Mapping) else []
