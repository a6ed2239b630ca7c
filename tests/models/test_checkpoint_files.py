import pytest

from caption_assets.models.checkpoint_files import (
    AdapterFound,
    check_adapter,
    check_model,
    select_adapter_files,
    select_model_files,
)
from caption_assets.models.weights import WeightsError

pytestmark = pytest.mark.fast

MODEL = ["config.json", "model.safetensors", "tokenizer.json"]
ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]


def test_code_pickles_and_hidden_files_are_excluded() -> None:
    parts = ["model.safetensors", "deep/er/config.json", "merges.txt", "chat_template.jinja", "tokenizer.model"]
    others = ["model.bin", "model.pt", "a.py", "README.md", ".cache/x.json", "weights-manifest.json", "a.json.lock"]
    assert select_model_files(parts + others) == sorted(parts)


@pytest.mark.parametrize(
    "state",
    [
        ["checkpoint-500/model.safetensors", "checkpoint-500/config.json", "checkpoint-500/trainer_state.json"],
        ["checkpoint-500/global_step500/mp_rank_00_model_states.pt", "checkpoint-500/tokenizer.json"],
        ["global_step1000/zero_pp_rank_0_mp_rank_00_optim_states.pt", "global_step1000/meta.json"],
        ["v0-2026/checkpoint-20/model-00001-of-00002.safetensors", "v0-2026/checkpoint-20/config.json"],
        ["epoch_3/model.safetensors", "epoch_3/optimizer.bin", "epoch_3/config.json"],
        ["best/pytorch_model.bin", "best/config.json"],
        ["last/trainer_state.json", "last/config.json", "last/tokenizer.json"],
        ["runs/Nov28_host/hparams.json", "wandb/run-1/files/wandb-summary.json", "logs/a/metrics.json"],
        ["trainer_state.json", "training_args.json", "optimizer.safetensors", "scheduler.json", "all_results.json"],
        ["onnx/model.onnx", "onnx/config.json"],
        ["adapter_config.json", "adapter_model.safetensors"],
    ],
)
def test_training_state_is_excluded(state: list[str]) -> None:
    assert select_model_files([*MODEL, *state]) == MODEL
    check_model([*MODEL, *state], "/out")


def test_training_checkpoint_given_as_the_model_is_accepted() -> None:
    assert select_model_files([*MODEL, "optimizer.pt", "global_step500/a.pt", "rng_state_0.pth"]) == MODEL


@pytest.mark.parametrize("extra", [[], ["tokenizer.json", "README.md"], ["config.json", "checkpoint-9/optimizer.pt"]])
@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_adapter_without_a_model_is_recognized(weights: str, extra: list[str]) -> None:
    with pytest.raises(AdapterFound, match="/out contains a LoRA adapter, not a model"):
        check_model(["adapter_config.json", weights, *extra], "/out")


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (["config.json", "pytorch_model.bin"], r"/out has no \.safetensors files, and weights in other formats"),
        (["checkpoint-9/model.safetensors"], r", or choose one of its folders with weights \(checkpoint-9\)"),
        (
            [f"checkpoint-{number}/{name}" for number in (1, 2) for name in MODEL],
            r"choose one of its folders with weights \(checkpoint-1, checkpoint-2\)",
        ),
        (["model.safetensors"], r"/out has no config\.json: put the whole model there"),
        (
            [f"checkpoint-9/{name}" for name in ADAPTER],
            "LoRA adapters in checkpoint-9, but no model: set CAPTION_LORA to one of them",
        ),
        ([f"{number}/model.safetensors" for number in range(9)], r"\(0, 1, 2, 3, …\)"),
        (["README.md"], r"no \.safetensors files"),
        ([], "/out does not exist, or is empty"),
    ],
)
def test_folder_without_a_model_is_an_error_with_its_contents(paths: list[str], reason: str) -> None:
    with pytest.raises(WeightsError, match=reason):
        check_model(paths, "/out")


def test_adapter_has_two_files() -> None:
    others = [*MODEL, "README.md", "optimizer.pt", "checkpoint-9/adapter_model.safetensors", "runs/a/b.json"]
    assert select_adapter_files([*others, *ADAPTER]) == ADAPTER
    check_adapter([*others, *ADAPTER], "/out")


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (
            MODEL,
            r"/out has no adapter_config\.json and no adapter_model\.safetensors: it contains a model; set CAPTION_",
        ),
        (["adapter_config.json", "adapter_model.bin"], r"has no adapter_model\.safetensors: .*pickles are not loaded"),
        (
            [f"checkpoint-9/{name}" for name in ADAPTER],
            r"PEFT's two files, or choose one of its folders .*\(checkpoint-9\)",
        ),
        (["adapter_model.safetensors"], r"/out has no adapter_config\.json"),
        (["README.md"], "set CAPTION_LORA to a folder or repository with PEFT's two files"),
        ([], "/out does not exist, or is empty"),
    ],
)
def test_folder_without_an_adapter_is_an_error_with_its_contents(paths: list[str], reason: str) -> None:
    with pytest.raises(WeightsError, match=reason):
        check_adapter(paths, "/out")
