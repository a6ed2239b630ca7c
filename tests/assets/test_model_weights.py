import pytest

from tests.assets.conftest import Project

pytestmark = pytest.mark.fast


def test_the_weights_version_is_that_of_their_bytes(project: Project) -> None:
    versions = set()
    for _ in range(2):
        [event] = project.run("model_weights").get_asset_materialization_events()
        versions.add((event.materialization.tags or {})["dagster/data_version"])
        assert event.materialization.metadata["model"].value == "caption-assets/sample-qwen2.5-vl"
    assert len(versions) == 1
