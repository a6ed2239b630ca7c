"""The files of a checkpoint, selected by name from all files of its folder or repository."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath

from caption_assets.models.weights import MANIFEST, WeightsError

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model")
"""Weights, configuration, tokenizer, processor. Code and pickles are never downloaded."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".distcp", ".gguf", ".onnx")
TRAINING_FOLDERS = ("checkpoint-*", "checkpoint_*", "global_step*", "runs", "wandb", "logs")
"""Folders of a training run's output: those of transformers, DeepSpeed, TensorBoard and wandb."""
TRAINING_FILES = (
    *("trainer_*", "training_*", "optimizer*", "scheduler*", "rng_state*", "random_states*"),
    *("all_results.json", "train_results.json", "eval_results.json"),
)
"""Training state that transformers' trainer and accelerate save beside the weights."""
CONFIG = "config.json"
"""A model's configuration."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""PEFT's names, the only ones under which vLLM loads an adapter."""


class AdapterFound(WeightsError):
    """A LoRA adapter where a model was expected."""


@dataclass(frozen=True, slots=True)
class CheckpointKind:
    """A kind of checkpoint, a model or an adapter: its setting and its files."""

    noun: str
    """Its name in messages."""
    revision: str
    """The name of its revision in messages: a setting, or a key of a recipe."""
    select: Callable[[Iterable[str]], list[str]]
    """Selects the checkpoint's files, sorted, from all files of its folder."""
    check: Callable[[Sequence[str], str], None]
    """Given all files of a folder and its address, raises WeightsError unless they contain such a checkpoint."""


def select_model_files(paths: Iterable[str]) -> list[str]:
    """The files of a model: the weights at the top of its folder, and configuration, tokenizer and processor.

    vLLM loads only weights at the top. A subfolder with weights of any format or with training state is another
    checkpoint, such as ``checkpoint-500`` of a training run; none of its files belong to the model.
    """
    everything = list(paths)
    others = {str(PurePosixPath(path).parent) for path in everything if _marks_checkpoint(PurePosixPath(path))} - {"."}
    return sorted(path for path in everything if _belongs(PurePosixPath(path), others))


def _marks_checkpoint(path: PurePosixPath) -> bool:
    return path.name.endswith(WEIGHT_SUFFIXES) or _matches(path.name, TRAINING_FILES)


def _belongs(path: PurePosixPath, others: set[str]) -> bool:
    if any(part.startswith(".") for part in path.parts) or path.name == MANIFEST:
        return False
    folders = [str(folder) for folder in path.parents][:-1]
    if any(folder in others or _matches(PurePosixPath(folder).name, TRAINING_FOLDERS) for folder in folders):
        return False
    return _matches(path.name, PATTERNS) and not _matches(path.name, (*TRAINING_FILES, "adapter_*"))


def select_adapter_files(paths: Iterable[str]) -> list[str]:
    """The files of a LoRA adapter: PEFT's two, at the top of its folder."""
    return sorted({ADAPTER_CONFIG, ADAPTER_WEIGHTS} & set(paths))


def check_model(paths: Sequence[str], address: str) -> None:
    """Check that a folder holds a model's weights as safetensors.

    Raises:
        AdapterFound: if it holds an adapter and no model.
        WeightsError: if it holds no model.
    """
    if any(path.endswith(".safetensors") for path in select_model_files(paths)):
        if CONFIG in paths:
            return
        raise WeightsError(f"{address} has no {CONFIG}: put the whole model there, as save_pretrained writes it")
    _check_exists(paths, address)
    if any(path.startswith("adapter_model.") or path == ADAPTER_CONFIG for path in paths):
        raise AdapterFound(f"{address} contains a LoRA adapter, not a model")
    if nested := _folders(path for path in paths if PurePosixPath(path).name == ADAPTER_CONFIG):
        raise WeightsError(
            f"{address} contains LoRA adapters in {nested}, but no model: set CAPTION_LORA to one of them, and "
            "CAPTION_MODEL to the model that it was trained on"
        )
    raise WeightsError(
        f"{address} has no .safetensors files, and weights in other formats are not loaded: save the model as "
        f"safetensors{_nested(paths)}"
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
        remedy = "save the adapter as safetensors; pickles are not loaded"
    elif any(path.endswith(".safetensors") for path in select_model_files(paths)):
        remedy = "it contains a model; set CAPTION_MODEL to it, and unset CAPTION_LORA"
    else:
        remedy = f"set CAPTION_LORA to a folder or repository with PEFT's two files{_nested(paths)}"
    raise WeightsError(f"{address} has no {' and no '.join(missing)}: {remedy}")


def _nested(paths: Sequence[str]) -> str:
    """A remedy that names the subfolders with weights, if there are any."""
    folders = _folders(path for path in paths if path.endswith(".safetensors"))
    return f", or choose one of its folders with weights ({folders})" if folders else ""


def _folders(paths: Iterable[str]) -> str:
    """The names of the subfolders with these files, up to four."""
    folders = sorted({str(PurePosixPath(path).parent) for path in paths} - {"."})
    return ", ".join([*folders[:4], *(["…"] if len(folders) > 4 else [])])


def _check_exists(paths: Sequence[str], address: str) -> None:
    if not paths:
        raise WeightsError(f"{address} does not exist, or is empty: check its name")


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


MODEL = CheckpointKind("model", "CAPTION_MODEL_REVISION", select_model_files, check_model)
LANGUAGE_MODEL = CheckpointKind("model", "the stage's `revision`", select_model_files, check_model)
ADAPTER = CheckpointKind("LoRA adapter", "CAPTION_LORA_REVISION", select_adapter_files, check_adapter)
ADAPTER_CONFIG_ONLY = CheckpointKind(
    "LoRA adapter",
    "CAPTION_LORA_REVISION",
    lambda paths: sorted({ADAPTER_CONFIG} & set(paths)),
    lambda paths, address: None,
)
"""An adapter's configuration alone, whatever its weights."""
