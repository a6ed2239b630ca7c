import os
import subprocess
import sys
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from caption_assets.store.root import Root
from tests.assets.conftest import ProjectHarness

pytestmark = pytest.mark.store

PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEY",
    "AWS_SECRET_ACCESS_KEY": "planted/secret",
    "AWS_SESSION_TOKEN": "planted-token",
}


@pytest.mark.parametrize("bucket", ["existing", "no-such-bucket"])
def test_events_and_logs_of_a_run_contain_no_secret(
    request: pytest.FixtureRequest, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: str
) -> None:
    if request.config.getoption("--s3-server") != "moto":
        pytest.skip("this server rejects the planted keys")
    Root.open(s3_url).write("shards/shard/a.mp4", b"data")
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    project = ProjectHarness(tmp_path)
    source = f"{s3_url}/shards" if bucket == "existing" else f"s3://{bucket}/shards"
    result = project.run("shard_index", root=s3_url, source=source)
    text = "\n".join(map(str, [*result.all_events, *project.instance.all_logs(result.run_id)]))
    assert result.success is (bucket == "existing")
    assert result.success or f"CAPTION_SOURCE is '{source}': cannot list {source}: there is no such bucket" in text
    assert source in text
    for secret in PLANTED.values():
        assert secret not in text


QUERY = """{
  repositoriesOrError { ... on RepositoryConnection { nodes {
    allTopLevelResourceDetails { name description configuredValues { key value } configFields { defaultValueAsJson } }
    assetNodes { id description metadataEntries { label description } }
    sensors { name description }
    schedules { name description }
  } } }
  workspaceOrError { ... on Workspace { locationEntries {
    displayMetadata { key value }
    locationOrLoadError { ... on PythonError {
      message stack cause { message stack } errorChain { error { message stack } }
    } }
  } } }
  runConfigSchemaOrError(selector: {
    repositoryName: "__repository__", repositoryLocationName: "caption_assets.definitions", pipelineName: "__ASSET_JOB"
  }) { ... on RunConfigSchema { rootDefaultYaml } }
  instance { info }
}"""
"""All parts of the configuration that the GraphQL API returns."""
SECRET_VARIABLES = {
    **PLANTED,
    "HF_TOKEN": "hf_plantedtoken",
    "CAPTION_ALERT_WEBHOOK": "https://hooks.example/planted-hook",
}


def query_api(folder: Path, **variables: str) -> str:
    """Response to the query, and the log, of a code location in a process of its own."""
    environment = {
        **os.environ,
        **SECRET_VARIABLES,
        "CAPTION_ROOT": str(folder / "root"),
        "DAGSTER_HOME": str(folder),
        **variables,
    }
    command = [str(Path(sys.executable).with_name("dagster-graphql")), "-m", "caption_assets.definitions", "-t", QUERY]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    return done.stdout + done.stderr


def test_graphql_api_returns_no_secret(tmp_path: Path) -> None:
    response = query_api(tmp_path, CAPTION_ENGINE_ARGS='{"max_num_seqs": 77}', CAPTION_ROOT_PROFILE="a-profile")
    for text in (str(tmp_path / "root"), "max_num_seqs", "77", "a-profile", "rootDefaultYaml"):
        assert text in response
    for secret in SECRET_VARIABLES.values():
        assert secret not in response


def test_graphql_api_returns_no_credential_of_the_engine_arguments(tmp_path: Path) -> None:
    response = query_api(tmp_path, CAPTION_ENGINE_ARGS='{"hf_token": "planted-argument"}')
    assert "hf_token is a credential, which Dagster's UI would show: remove it, and set HF_TOKEN" in response
    assert "planted-argument" not in response
