"""The Dagster instance of `k8s/values.yaml`, on this machine."""

from __future__ import annotations

from pathlib import Path

import boto3
import yaml

from tests.k8s.chart import instance_config
from tests.k8s.manifests import VALUES
from tests.postgres.server import PostgresServer
from tests.store.server import S3Server


def write_instance(
    home: Path, server: PostgresServer, store: S3Server, *, runs_queue_up: bool = False
) -> dict[str, str]:
    """Write the chart's `dagster.yaml` into ``home``; returns the environment variables that it needs.

    Bucket, queue, pools, monitoring and retries are those of the values. Only two parts differ from the cluster: the
    address and name of the database, which the values leave to the user, and the launcher, which starts processes here.

    Args:
        home: DAGSTER_HOME.
        server: server of the instance's database, which is created.
        store: server of the compute logs.
        runs_queue_up: whether all runs stay in the queue, for tests of run requests.
    """
    database = {
        "postgresqlHost": "127.0.0.1",
        "postgresqlDatabase": server.create_database(),
        "service": {"port": server.port},
    }
    config = instance_config({**VALUES, "postgresql": {**VALUES["postgresql"], **database}})
    config["run_launcher"] = {"module": "dagster", "class": "DefaultRunLauncher"}
    if runs_queue_up:
        config["concurrency"]["runs"]["max_concurrent_runs"] = 0
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))
    variables = {
        "DAGSTER_HOME": str(home),
        "DAGSTER_PG_PASSWORD": server.password,
        "AWS_ENDPOINT_URL": store.endpoint,
        "AWS_ACCESS_KEY_ID": store.key,
        "AWS_SECRET_ACCESS_KEY": store.secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        aws_access_key_id=store.key,
        aws_secret_access_key=store.secret,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=config["compute_logs"]["config"]["bucket"])
    return variables
