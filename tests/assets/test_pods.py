import dagster as dg
import pytest

from caption_assets.assets.pods import gpu_pod
from caption_assets.definitions import build_definitions
from caption_assets.settings import Settings

pytestmark = [pytest.mark.k8s, pytest.mark.representative]


def pod_of(asset: str, **settings: object) -> dict[str, object]:
    """What dagster-k8s makes of the tags of the asset's step: it refuses wrong keys, as it would at a launch."""
    job = pytest.importorskip("dagster_k8s.job")
    definitions = build_definitions(Settings(**settings))  # type: ignore[arg-type]
    op = definitions.resolve_assets_def(dg.AssetKey(asset)).op
    config = job.get_user_defined_k8s_config(op.tags)
    return dict(config.container_config.get("resources", {}).get("limits", {}))


def test_the_caption_step_asks_for_the_models_gpus() -> None:
    assert pod_of("stage1_captions", model="qwen2.5") == {"nvidia.com/gpu": "1"}


@pytest.mark.parametrize("asset", ["shard_index", "model_weights", "clip_manifest"])
def test_no_other_step_asks_for_a_gpu(asset: str) -> None:
    assert pod_of(asset, model="qwen2.5") == {}


def test_the_sample_model_needs_no_gpu() -> None:
    assert gpu_pod(Settings()) == {}


def test_a_gpu_is_asked_for_each_share_of_each_replica() -> None:
    limits = pod_of("stage1_captions", model="qwen2.5", tensor_parallel_size=2, data_parallel_size=3)
    assert limits == {"nvidia.com/gpu": "6"}
