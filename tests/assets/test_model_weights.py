import logging
import re

import dagster as dg
import pytest

from tests.assets.conftest import Project
from tests.models.hub_server import COMMIT, HUB_ID, SIGNATURE, TOKEN, Fault, HubServer

SHARD = "model-00001-of-00002.safetensors"


@pytest.mark.fast
def test_the_weights_version_is_that_of_their_bytes(project: Project) -> None:
    versions = set()
    for _ in range(2):
        [event] = project.run("model_weights").get_asset_materialization_events()
        versions.add((event.materialization.tags or {})["dagster/data_version"])
        assert event.materialization.metadata["model"].value == "caption-assets/sample-qwen2.5-vl"
    assert len(versions) == 1


@pytest.mark.store
def test_a_model_of_the_hub_is_mirrored_and_its_progress_logged(project: Project, hub: HubServer) -> None:
    result = project.run("model_weights", model=HUB_ID, model_revision=COMMIT)
    [event] = result.get_asset_materialization_events()
    metadata = event.materialization.metadata
    assert (metadata["files"].value, metadata["revision"].value) == (6, COMMIT)
    assert metadata["source"].value == f"{hub.endpoint}/{HUB_ID}/tree/{COMMIT}"
    said = [record.user_message for record in project.instance.all_logs(result.run_id)]
    assert any(re.fullmatch(r"weights: 0\.2 MB of 0\.2 MB", message) for message in said)


FAULTS = {
    "none": [],
    "forbidden": [Fault(status=403)],
    "unavailable": [Fault(status=503)] * 9,
    "corrupt": [Fault(flip=40_000)] * 2,
    "short": [Fault(short=9)] * 2,
    "cut": [Fault(cut=40_000)],
    "range": [Fault(status=416)],
}


@pytest.mark.store
@pytest.mark.parametrize("faults", FAULTS.values(), ids=list(FAULTS))
def test_no_secret_is_told_whatever_happens(
    project: Project,
    hub: HubServer,
    faults: list[Fault],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    hub.token = TOKEN
    hub.faults[SHARD] = list(faults)
    with caplog.at_level(logging.DEBUG):
        for name in logging.root.manager.loggerDict:  # some have levels of their own
            caplog.set_level(logging.DEBUG, name)
        result = project.run("model_weights", model=HUB_ID, model_revision=COMMIT)
    told = [dg.serialize_value(record) for record in project.instance.all_logs(result.run_id)]
    told += [f"{record.getMessage()} {record.__dict__}" for record in caplog.records]
    told += capfd.readouterr()
    told += [path.read_text() for path in project.root.rglob("*.json") if path.name != "tokenizer.json"]
    everything = "\n".join(told)
    assert any(SIGNATURE in reader.query for reader in hub.reads(SHARD)), "the secrets were never in reach"
    assert f"{hub.storage}/" in everything, "the addresses are logged, but"
    assert TOKEN not in everything
    assert SIGNATURE not in everything
