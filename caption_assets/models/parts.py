"""The files that a checkpoint consists of, chosen by name from all that its folder or repository holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath

from caption_assets.models.weights import MANIFEST, WeightsError

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model")
"""Weights, configuration, tokenizer, processor. No code and no pickles are fetched."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".distcp", ".gguf", ".onnx")
TRAINING_FOLDERS = ("checkpoint-*", "checkpoint_*", "global_step*", "runs", "wandb", "logs")
"""Folders of transformers, DeepSpeed, TensorBoard and wandb within a training run's output."""
TRAINING_FILES = (
    *("trainer_*", "training_*", "optimizer*", "scheduler*", "rng_state*", "random_states*"),
    *("all_results.json", "train_results.json", "eval_results.json"),
)
"""State of transformers' trainer and of accelerate, beside the weights that it saved."""
CONFIG = "config.json"
"""That of a model."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""PEFT's names, the only ones under which vLLM loads an adapter."""


class AdapterFound(WeightsError):
    """A LoRA adapter where a model was expected."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one kind of checkpoint."""

    noun: str
    """For messages."""
    setting: str
    """The setting that names the checkpoint; that of its revision ends in ``_REVISION``."""
    select: Callable[[Iterable[str]], list[str]]
    """The files that belong to it, sorted, of all in its folder."""
    check: Callable[[Sequence[str], str], None]
    """Raises WeightsError unless the files of a folder, all of them, are such a checkpoint; given its address too."""


def model_files(paths: Iterable[str]) -> list[str]:
    """The files of a model: its weights at the top of its folder, and configuration, tokenizer and processor.

    vLLM loads weights from the top alone. A folder below it that holds weights of any format, or a trainer's state, is
    another checkpoint, such as ``checkpoint-500`` of a training run, and nothing of it belongs to the model.
    """
    everything = list(paths)
    others = {str(PurePosixPath(path).parent) for path in everything if _is_of_another(PurePosixPath(path))} - {"."}
    return sorted(path for path in everything if _belongs(PurePosixPath(path), others))


def _is_of_another(path: PurePosixPath) -> bool:
    return path.name.endswith(WEIGHT_SUFFIXES) or _matches(path.name, TRAINING_FILES)


def _belongs(path: PurePosixPath, others: set[str]) -> bool:
    if any(part.startswith(".") for part in path.parts) or path.name == MANIFEST:
        return False
    folders = [str(folder) for folder in path.parents][:-1]
    if any(folder in others or _matches(PurePosixPath(folder).name, TRAINING_FOLDERS) for folder in folders):
        return False
    return _matches(path.name, PATTERNS) and not _matches(path.name, (*TRAINING_FILES, "adapter_*"))


def adapter_files(paths: Iterable[str]) -> list[str]:
    """The files of a LoRA adapter: the two of PEFT, at the top of its folder."""
    return sorted({ADAPTER_CONFIG, ADAPTER_WEIGHTS} & set(paths))


def check_model(paths: Sequence[str], address: str) -> None:
    """Check that a folder holds a model's weights as safetensors.

    Raises:
        AdapterFound: if it holds an adapter and no model.
        WeightsError: if it holds no model.
    """
    if any(path.endswith(".safetensors") for path in model_files(paths)):
        if CONFIG in paths:
            return
        raise WeightsError(
            f"there is no {CONFIG} in {address}: put the whole model there, as save_pretrained writes it"
        )
    _check_exists(paths, address)
    if any(path.startswith("adapter_model.") or path == ADAPTER_CONFIG for path in paths):
        raise AdapterFound(f"{address} holds a LoRA adapter, not a model")
    if nested := _folders(path for path in paths if PurePosixPath(path).name == ADAPTER_CONFIG):
        raise WeightsError(
            f"{address} holds no model, but LoRA adapters in {nested}: set CAPTION_LORA to one of them, and "
            "CAPTION_MODEL to the model that it was trained on"
        )
    raise WeightsError(
        f"there are no .safetensors files in {address}: no model is loaded from other files of weights{_nested(paths)}"
    )


def check_adapter(paths: Sequence[str], address: str) -> None:
    """Check that a folder holds an adapter as PEFT writes it.

    Raises:
        WeightsError: if it does not.
    """
    missing = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if name not in paths]
    if not missing:
        return
    _check_exists(paths, address)
    if ADAPTER_CONFIG in paths and any(path.startswith("adapter_model.") for path in paths):
        remedy = "save the adapter as safetensors: pickles are not loaded"
    elif any(path.endswith(".safetensors") for path in model_files(paths)):
        remedy = "it holds a model: set CAPTION_MODEL to it, and leave CAPTION_LORA out"
    else:
        remedy = f"CAPTION_LORA takes a folder or repository with PEFT's two files{_nested(paths)}"
    raise WeightsError(f"there is no {' and no '.join(missing)} in {address}: {remedy}")


def _nested(paths: Sequence[str]) -> str:
    """Advice that names the folders below that hold weights, if there are any."""
    folders = _folders(path for path in paths if path.endswith(".safetensors"))
    return f"; name one of its folders with weights ({folders})" if folders else ""


def _folders(paths: Iterable[str]) -> str:
    """The folders below the top that hold ``paths``, the first four by name."""
    folders = sorted({str(PurePosixPath(path).parent) for path in paths} - {"."})
    return ", ".join([*folders[:4], *(["…"] if len(folders) > 4 else [])])


def _check_exists(paths: Sequence[str], address: str) -> None:
    if not paths:
        raise WeightsError(f"{address} does not exist, or is empty: check its name")


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


MODEL = Layout("model", "CAPTION_MODEL", model_files, check_model)
ADAPTER = Layout("LoRA adapter", "CAPTION_LORA", adapter_files, check_adapter)
ANNOUNCEMENT = Layout(
    "LoRA adapter",
    "CAPTION_LORA",
    lambda paths: sorted({ADAPTER_CONFIG} & set(paths)),
    lambda paths, address: None,
)
"""What an adapter says of itself, whatever its weights."""
