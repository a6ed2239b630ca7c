import logging
import re
from pathlib import Path

import dagster as dg
import pytest

from caption_assets.dagster_lib import progress
from caption_assets.models.mirror import read_weights_manifest
from caption_assets.models.variants import SAMPLE
from caption_assets.store.root import Root
from tests.assets.conftest import ProjectHarness
from tests.models.adapters import adapter_files, write_adapter
from tests.models.hub_server import COMMIT, HUB_ID, SIGNATURE, TOKEN, Fault, HubServer

SHARD = "model-00001-of-00002.safetensors"


@pytest.mark.fast
def test_data_version_of_the_weights_is_stable(project: ProjectHarness) -> None:
    versions = set()
    for _ in range(2):
        [event] = project.run("model_weights").get_asset_materialization_events()
        versions.add((event.materialization.tags or {})["dagster/data_version"])
        assert event.materialization.metadata["model"].value == "caption-assets/sample-qwen2.5-vl"
    assert len(versions) == 1


@pytest.mark.fast
def test_adapter_is_mirrored_with_the_model(project: ProjectHarness, tmp_path: Path) -> None:
    [model] = project.run("model_weights").get_asset_materialization_events()
    versions = {(model.materialization.tags or {})["dagster/data_version"]}
    files = len(read_weights_manifest(Root.open(str(project.root)), SAMPLE).files)
    for seed in (1, 2):
        folder = write_adapter(tmp_path / "mine", adapter_files(seed=seed))
        result = project.run("model_weights", lora=str(folder), lora_revision="v1")
        [event] = result.get_asset_materialization_events()
        assert event.materialization.metadata["adapter"].value == "local/mine @ v1"
        assert event.materialization.metadata["files"] == dg.MetadataValue.int(files + 2)
        versions.add((event.materialization.tags or {})["dagster/data_version"])
        [evaluation] = result.get_asset_check_evaluations()
        assert evaluation.passed
    assert len(versions) == 3
    [stored] = (project.root / "weights").glob("lora--local--mine-*/v1")
    assert (stored / "adapter_model.safetensors").read_bytes() == adapter_files(seed=2)["adapter_model.safetensors"]


@pytest.mark.fast
def test_adapter_as_model_fails_with_the_remedy(project: ProjectHarness, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "mine", adapter_files())
    message = project.failure("model_weights", model=str(folder), model_revision="v1")
    assert "contains a LoRA adapter, not a model: set CAPTION_LORA to it" in message


@pytest.mark.store
def test_hub_model_is_mirrored_and_its_progress_logged(
    project: ProjectHarness, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.0)
    result = project.run("model_weights", model=HUB_ID, model_revision=COMMIT)
    [event] = result.get_asset_materialization_events()
    metadata = event.materialization.metadata
    assert (metadata["files"].value, metadata["revision"].value) == (6, COMMIT)
    assert metadata["source"].value == f"{hub.endpoint}/{HUB_ID}/tree/{COMMIT}"
    messages = [record.user_message for record in project.instance.all_logs(result.run_id)]
    assert any(re.fullmatch(r"weights: 0\.2 MB of 0\.2 MB", message) for message in messages)


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
def test_no_secret_is_logged_after_any_fault(
    project: ProjectHarness,
    hub: HubServer,
    faults: list[Fault],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    hub.token = TOKEN
    hub.faults[SHARD] = list(faults)
    with caplog.at_level(logging.DEBUG):
        for name in logging.root.manager.loggerDict:  # some loggers set their own levels
            caplog.set_level(logging.DEBUG, name)
        result = project.run("model_weights", model=HUB_ID, model_revision=COMMIT)
    texts = [dg.serialize_value(record) for record in project.instance.all_logs(result.run_id)]
    texts += [f"{record.getMessage()} {record.__dict__}" for record in caplog.records]
    texts += capfd.readouterr()
    texts += [path.read_text() for path in project.root.rglob("*.json") if path.name != "tokenizer.json"]
    text = "\n".join(texts)
    assert any(SIGNATURE in reader.query for reader in hub.reads(SHARD)), "the run received no secret"
    assert f"{hub.storage}/" in text, "the run logged no addresses"
    assert TOKEN not in text
    assert SIGNATURE not in text
