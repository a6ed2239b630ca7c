from importlib.metadata import version
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
    """What dagster-k8s makes of the tags of the asset's step: it refuses wrong keys, as it would at a launch."""
    definitions = build_definitions(Settings(**settings))  # type: ignore[arg-type]
    tags = definitions.resolve_assets_def(dg.AssetKey(asset)).op.tags
    return cast(UserDefinedDagsterK8sConfig, get_user_defined_k8s_config(tags))


def gpus_of(asset: str, **settings: object) -> str | None:
    limits = pod_of(asset, **settings).container_config.get("resources", {}).get("limits", {})
    return limits.get("nvidia.com/gpu")  # type: ignore[no-any-return]


def gibibytes(quantity: str) -> float:
    return int(quantity.removesuffix("Mi")) / 1024


def test_the_caption_step_asks_for_the_models_gpus() -> None:
    assert gpus_of("stage1_captions", model="qwen2.5") == "1"


@pytest.mark.parametrize("asset", ["shard_index", "model_weights", "clip_manifest"])
def test_no_other_step_asks_for_a_gpu(asset: str) -> None:
    assert gpus_of(asset, model="qwen2.5") is None
    assert "node_selector" not in pod_of(asset, model="qwen2.5").pod_spec_config


def test_the_sample_model_needs_no_gpu() -> None:
    assert gpus_of("stage1_captions") is None
    assert "tolerations" not in pod_of("stage1_captions").pod_spec_config


def test_a_gpu_is_asked_for_each_share_of_each_replica() -> None:
    assert gpus_of("stage1_captions", model="qwen2.5", tensor_parallel_size=2, data_parallel_size=3) == "6"


def test_the_gpu_pod_goes_to_nodes_that_are_kept_for_gpus() -> None:
    pod = pod_of("stage1_captions", model="qwen2.5", gpu_node_selector={"pool": "l40s"}).pod_spec_config
    assert pod["node_selector"] == {"pool": "l40s"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_only_the_caption_step_has_the_image_with_the_engine() -> None:
    images = {asset: pod_of(asset, gpu_image="gpu:1").container_config.get("image") for asset in STEPS}
    assert images == {"shard_index": None, "model_weights": None, "clip_manifest": None, "stage1_captions": "gpu:1"}


def test_an_image_may_be_named_by_the_projects_version() -> None:
    image = pod_of("stage1_captions", gpu_image="gpu:{version}").container_config["image"]
    assert image == f"gpu:{version('caption-assets')}"


def test_the_port_of_the_metrics_is_declared() -> None:
    [port] = pod_of("stage1_captions", metrics_port=9090).container_config["ports"]
    assert port == {"name": "metrics", "container_port": 9090}
    assert "ports" not in pod_of("stage1_captions").container_config


def test_the_engines_processes_have_shared_memory() -> None:
    config = pod_of("stage1_captions", model="qwen2.5")
    [volume] = config.pod_spec_config["volumes"]
    assert volume["empty_dir"] == {"medium": "Memory", "size_limit": "2Gi"}
    assert config.container_config["volume_mounts"] == [{"name": volume["name"], "mount_path": "/dev/shm"}]


def test_a_pod_has_time_to_stop() -> None:
    stop = termination.STOP_SECONDS + termination.EXIT_SECONDS + termination.REPORT_SECONDS
    assert stop < 30 < pod_of("stage1_captions").pod_spec_config["termination_grace_period_seconds"]


@pytest.mark.parametrize(("executor", "retries"), [("in_process", None), ("multiprocess", None), ("k8s", 3)])
def test_a_step_is_retried_only_where_each_attempt_has_a_pod(executor: str, retries: int | None) -> None:
    definitions = build_definitions(Settings.model_validate({"executor": executor}))
    for asset in STEPS:
        policy = definitions.resolve_assets_def(dg.AssetKey(asset)).op.retry_policy
        assert (policy and policy.max_retries) == (retries if asset in STEPS[1:] else None), asset


def test_the_caption_step_is_in_the_pool_and_no_other() -> None:
    definitions = build_definitions(Settings())
    pools = {asset: definitions.resolve_assets_def(dg.AssetKey(asset)).op.pool for asset in STEPS}
    assert pools == {**dict.fromkeys(STEPS), "stage1_captions": GPU_POOL}


def test_the_pods_of_steps_have_no_rights_and_are_made_once() -> None:
    parse: Any = UserDefinedDagsterK8sConfig.from_dict
    config = parse(step_pod(Settings(step_service_account="caption")))
    assert set(config.pod_template_spec_metadata["annotations"].values()) == {"false", "true"}
    assert config.pod_spec_config == {"automount_service_account_token": False, "service_account_name": "caption"}
    assert config.job_spec_config["backoff_limit"] == 0


@given(st.integers(1, 10**7), st.integers(1, 10**5))
def test_a_pod_for_known_work_asks_for_no_more_than_one_for_any(windows: int, tokens_each: int) -> None:
    settings = Settings(model="qwen2.5")
    size, largest = caption_size(settings, windows, windows * tokens_each), caption_size(settings)
    assert size.cpus <= largest.cpus
    assert size.gpus == largest.gpus
    assert size.memory_gb <= largest.memory_gb + windows * 32 / 2**20  # of which the rows are not known beforehand
    assert size.memory_limit_gb > size.memory_gb


def test_a_small_run_gets_a_small_pod() -> None:
    settings = Settings(model="qwen2.5")
    pixels = settings.variant.pixels
    tokens = visual_tokens(fit(16, 1080, 1920, pixels), pixels.factor)
    few, many = (caption_size(settings, windows, windows * tokens) for windows in (10, 1000))
    assert (few.cpus, many.cpus) == (2, 6)
    assert few.memory_gb < many.memory_gb - 10


def test_the_schedule_sizes_the_pod_by_run_config_that_dagster_accepts() -> None:
    settings = Settings(model="qwen2.5", executor="k8s")
    config = caption_run_config(settings, 10, 57_600)
    job = build_definitions(settings).get_repository_def().get_implicit_global_asset_job_def()
    assert dg.validate_run_config(job, config)
    resources = caption_resources(config)
    assert resources["limits"]["nvidia.com/gpu"] == "1"
    assert gibibytes(resources["requests"]["memory"]) < caption_size(settings).memory_gb


def test_a_small_pod_starts_no_more_decoders_than_it_has_memory_for() -> None:
    settings = Settings(model="qwen2.5", executor="k8s")
    for windows, workers in ((10, "1"), (40, "3"), (10_000, "8")):
        config = caption_run_config(settings, windows, windows * 5760)
        assert caption_container(config)["env"] == [{"name": "CAPTION_DECODE_WORKERS", "value": workers}]


def caption_resources(config: dict[str, Any]) -> dict[str, dict[str, str]]:
    return caption_container(config)["resources"]  # type: ignore[no-any-return]


def caption_container(config: dict[str, Any]) -> dict[str, Any]:
    return config["execution"]["config"]["per_step_k8s_config"]["captions"]["container_config"]  # type: ignore[no-any-return]


def test_without_pods_there_is_no_run_config_for_them() -> None:
    assert caption_run_config(Settings(), 10, 57_600) == {}


def test_an_image_of_another_version_than_the_runs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_image()
    [variable] = pod_of("stage1_captions").container_config["env"]
    monkeypatch.setenv(variable["name"], variable["value"])
    check_image()
    monkeypatch.setenv(VERSION_VARIABLE, "0.0.1")
    with pytest.raises(ImageMismatch, match=r"and the run's has 0\.0\.1: build both from one version"):
        check_image()
