from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import dagster as dg
import pytest
from dagster_k8s.job import UserDefinedDagsterK8sConfig, get_user_defined_k8s_config
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.budget import fit, visual_tokens
from caption_assets.dagster_lib import termination
from caption_assets.definitions import build_definitions
from caption_assets.kubernetes.pods import (
    GPU_POOL,
    VERSION_VARIABLE,
    ImageMismatch,
    caption_run_config,
    caption_size,
    check_image,
    step_pod,
)
from caption_assets.settings import Settings

pytestmark = [pytest.mark.fast, pytest.mark.k8s, pytest.mark.representative]

STEPS = ["shard_index", "model_weights", "clip_manifest", "stage1_captions"]


def pod_of(asset: str, **settings: object) -> UserDefinedDagsterK8sConfig:
    """Configuration that dagster-k8s reads from a step's tags; as at a launch, it rejects unknown keys."""
    definitions = build_definitions(Settings(**settings))  # type: ignore[arg-type]
    tags = definitions.resolve_assets_def(dg.AssetKey(asset)).op.tags
    return cast(UserDefinedDagsterK8sConfig, get_user_defined_k8s_config(tags))


def gpus_of(asset: str, **settings: object) -> str | None:
    limits = pod_of(asset, **settings).container_config.get("resources", {}).get("limits", {})
    return limits.get("nvidia.com/gpu")  # type: ignore[no-any-return]


def gibibytes(quantity: str) -> float:
    return int(quantity.removesuffix("Mi")) / 1024


def test_caption_step_requests_the_models_gpus() -> None:
    assert gpus_of("stage1_captions", model="qwen2.5") == "1"


@pytest.mark.parametrize("asset", ["shard_index", "model_weights", "clip_manifest"])
def test_other_steps_request_no_gpu(asset: str) -> None:
    assert gpus_of(asset, model="qwen2.5") is None
    assert "node_selector" not in pod_of(asset, model="qwen2.5").pod_spec_config


def test_sample_model_needs_no_gpu() -> None:
    assert gpus_of("stage1_captions") is None
    assert "tolerations" not in pod_of("stage1_captions").pod_spec_config


def test_caption_step_requests_a_gpu_for_each_shard_of_each_replica() -> None:
    assert gpus_of("stage1_captions", model="qwen2.5", tensor_parallel_size=2, data_parallel_size=3) == "6"


def test_gpu_pod_selects_and_tolerates_gpu_nodes() -> None:
    pod = pod_of("stage1_captions", model="qwen2.5", gpu_node_selector={"pool": "l40s"}).pod_spec_config
    assert pod["node_selector"] == {"pool": "l40s"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_only_the_caption_step_has_the_gpu_image() -> None:
    images = {asset: pod_of(asset, gpu_image="gpu:1").container_config.get("image") for asset in STEPS}
    assert images == {"shard_index": None, "model_weights": None, "clip_manifest": None, "stage1_captions": "gpu:1"}


def test_gpu_image_may_contain_the_projects_version() -> None:
    image = pod_of("stage1_captions", gpu_image="gpu:{version}").container_config["image"]
    assert image == f"gpu:{version('caption-assets')}"


def test_metrics_port_is_declared() -> None:
    [port] = pod_of("stage1_captions", metrics_port=9090).container_config["ports"]
    assert port == {"name": "metrics", "container_port": 9090}
    assert "ports" not in pod_of("stage1_captions").container_config


def test_engine_has_shared_memory() -> None:
    config = pod_of("stage1_captions", model="qwen2.5")
    [volume] = config.pod_spec_config["volumes"]
    assert volume["empty_dir"] == {"medium": "Memory", "size_limit": "2Gi"}
    assert config.container_config["volume_mounts"] == [{"name": volume["name"], "mount_path": "/dev/shm"}]


def test_grace_period_exceeds_the_time_to_stop() -> None:
    stop = termination.STOP_SECONDS + termination.EXIT_SECONDS + termination.REPORT_SECONDS
    assert stop < 30 < pod_of("stage1_captions").pod_spec_config["termination_grace_period_seconds"]


@pytest.mark.parametrize(("executor", "retries"), [("in_process", None), ("multiprocess", None), ("k8s", 3)])
def test_steps_are_retried_only_with_a_pod_for_each_attempt(executor: str, retries: int | None) -> None:
    definitions = build_definitions(Settings.model_validate({"executor": executor}))
    for asset in STEPS:
        policy = definitions.resolve_assets_def(dg.AssetKey(asset)).op.retry_policy
        assert (policy and policy.max_retries) == (retries if asset in STEPS[1:] else None), asset


def test_only_the_caption_step_is_in_the_pool() -> None:
    definitions = build_definitions(Settings())
    pools = {asset: definitions.resolve_assets_def(dg.AssetKey(asset)).op.pool for asset in STEPS}
    assert pools == {**dict.fromkeys(STEPS), "stage1_captions": GPU_POOL}


def test_step_pods_have_no_token_and_no_replacement() -> None:
    parse: Any = UserDefinedDagsterK8sConfig.from_dict
    config = parse(step_pod(Settings(step_service_account="caption")))
    assert set(config.pod_template_spec_metadata["annotations"].values()) == {"false", "true"}
    assert config.pod_spec_config == {"automount_service_account_token": False, "service_account_name": "caption"}
    assert config.job_spec_config["backoff_limit"] == 0


@given(st.integers(1, 10**7), st.integers(1, 10**5))
def test_pod_for_known_work_is_at_most_as_large_as_the_maximum(windows: int, tokens_each: int) -> None:
    settings = Settings(model="qwen2.5")
    size, largest = caption_size(settings, windows, windows * tokens_each), caption_size(settings)
    assert size.cpus <= largest.cpus
    assert size.gpus == largest.gpus
    assert size.memory_gb <= largest.memory_gb + windows * 32 / 2**20  # the maximum has no rows
    assert size.memory_limit_gb > size.memory_gb


def test_small_run_gets_a_small_pod() -> None:
    settings = Settings(model="qwen2.5")
    pixels = settings.variant.pixels
    tokens = visual_tokens(fit(16, 1080, 1920, pixels), pixels.factor)
    few, many = (caption_size(settings, windows, windows * tokens) for windows in (10, 1000))
    assert (few.cpus, many.cpus) == (2, 6)
    assert few.memory_gb < many.memory_gb - 10


def test_run_config_of_the_pod_size_is_valid() -> None:
    settings = Settings(model="qwen2.5", executor="k8s")
    config = caption_run_config(settings, 10, 57_600)
    job = build_definitions(settings).get_repository_def().get_implicit_global_asset_job_def()
    assert dg.validate_run_config(job, config)
    resources = caption_resources(config)
    assert resources["limits"]["nvidia.com/gpu"] == "1"
    assert gibibytes(resources["requests"]["memory"]) < caption_size(settings).memory_gb


def test_small_pod_starts_few_decode_workers() -> None:
    settings = Settings(model="qwen2.5", executor="k8s")
    for windows, workers in ((10, "1"), (40, "3"), (10_000, "8")):
        config = caption_run_config(settings, windows, windows * 5760)
        assert caption_container(config)["env"] == [{"name": "CAPTION_DECODE_WORKERS", "value": workers}]


def caption_resources(config: dict[str, Any]) -> dict[str, dict[str, str]]:
    return caption_container(config)["resources"]  # type: ignore[no-any-return]


def caption_container(config: dict[str, Any]) -> dict[str, Any]:
    return config["execution"]["config"]["per_step_k8s_config"]["captions"]["container_config"]  # type: ignore[no-any-return]


def test_run_config_is_empty_without_pods() -> None:
    assert caption_run_config(Settings(), 10, 57_600) == {}


def test_image_with_another_version_than_the_runs_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    check_image()
    [variable] = pod_of("stage1_captions").container_config["env"]
    monkeypatch.setenv(variable["name"], variable["value"])
    check_image()
    monkeypatch.setenv(VERSION_VARIABLE, "0.0.1")
    with pytest.raises(ImageMismatch, match=r"the run's pod has 0\.0\.1: build both from one version"):
        check_image()


def test_language_model_needs_a_gpu_beside_a_video_model_on_the_cpu(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "stages:\n"
        "  - {name: caption, prompt: Describe the video.}\n"
        '  - {name: longer, prompt: "Extend {caption}", video: false, model: Qwen/Qwen3-14B, revision: "1"}\n'
    )
    size = caption_size(Settings(recipe=str(tmp_path / "mine.yaml"), tensor_parallel_size=2))
    assert (size.gpus, size.cpus) == (2, 12)
    assert caption_size(Settings()).gpus == 0
