from dataclasses import asdict

import dagster as dg
import pytest

from caption_assets.captioning.engine import EngineConfig
from caption_assets.resources import Engine, Storage, build_resources
from caption_assets.settings import Settings
from caption_assets.store.access import Access

pytestmark = pytest.mark.fast

ENGINE = {
    "gpu_memory_utilization": 0.5,
    "processor_cache_gb": 2.0,
    "max_batched_tokens": 4096,
    "tensor_parallel_size": 2,
    "data_parallel_size": 3,
    "engine_args": {"max_num_seqs": 8, "compilation_config": {"mode": None}, "seed": None},
    "request_timeout_seconds": 60.0,
    "frames_gb": 1.0,
    "max_engine_restarts": 4,
}


def test_engine_settings_pass_through_dagster_unchanged() -> None:
    settings = Settings(**ENGINE)  # type: ignore[arg-type]
    assert asdict(settings.engine) == ENGINE
    with dg.build_resources(build_resources(settings)) as resources:
        assert resources.engine.engine_config == settings.engine


def test_storage_settings_pass_through_dagster_unchanged() -> None:
    settings = Settings(root="s3://a", source="s3://b", s3_anonymous=True, s3_path_style=True)
    with dg.build_resources(build_resources(settings)) as resources:
        assert resources.storage.root_to_read().access == Access(path_style=True)
        assert resources.storage.source().access == Access(anonymous=True, path_style=True)


def test_source_below_the_root_uses_the_roots_profile() -> None:
    assert Settings(root="s3://a", root_profile="me").storage.source_access == Access("me")
    assert Settings(root="s3://a", source="s3://a/b", root_profile="me").storage.source_access == Access()


def test_resources_show_their_configuration() -> None:
    resources = build_resources(Settings(engine_args={"max_num_seqs": 77}, root="/a/folder"))
    engine, storage = resources["engine"], resources["storage"]
    assert isinstance(engine, Engine)
    assert isinstance(storage, Storage)
    assert engine.config["engine_args"] == {"max_num_seqs": 77}
    assert storage.config["root_url"] == "/a/folder"


def test_engine_identity_equals_that_of_earlier_releases() -> None:
    config = EngineConfig(
        gpu_memory_utilization=0.5,
        tensor_parallel_size=2,
        data_parallel_size=3,
        engine_args={"a": 1},
        request_timeout_seconds=1.0,
    )
    assert config.identity.endswith(" 0b0cbc4b")
