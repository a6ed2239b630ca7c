from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from caption_assets.sample.shards import FOLDER_SHARD
from tests.k8s.cluster import Cluster, deploy

LONG_SHARD = "long"
"""A shard that takes long enough to be interrupted."""
COPIES = 12
"""Number of copies of each sample clip in the long shard."""
SETTINGS = {
    "CAPTION_EXECUTOR": "k8s",
    "CAPTION_STEP_SERVICE_ACCOUNT": "caption",
    "CAPTION_CHECKPOINT_ROWS": "4",
    "CAPTION_LEASE_SECONDS": "20",
    "CAPTION_MAX_UNREADABLE_FRACTION": "0.1",
}


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory, sample_data: Path) -> Iterator[Cluster]:
    """The project on the cluster of KUBECONFIG, with its shards registered."""
    folder = tmp_path_factory.mktemp("cluster")
    shards = folder / "shards"
    shutil.copytree(sample_data / "shards" / FOLDER_SHARD, shards / FOLDER_SHARD)
    for clip in (shards / FOLDER_SHARD).iterdir():
        for copy in range(COPIES):
            target = shards / LONG_SHARD / f"{clip.stem}-{copy}{clip.suffix}"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(clip, target)
    with deploy(folder, shards, SETTINGS) as deployed:
        deployed.instance.add_dynamic_partitions("shards", [FOLDER_SHARD, LONG_SHARD])
        yield deployed
