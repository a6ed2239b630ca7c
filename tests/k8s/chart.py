"""Dagster's Helm chart with `k8s/values.yaml`: its dagster.yaml, and the pods that the chart and Dagster start.

Follows the chart's templates, which are not copied here; compared by hand with the output of `helm template` 1.12.7.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.instance.ref import InstanceRef
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.storage.dagster_run import DagsterRun
from dagster._serdes import ConfigurableClassData
from dagster_k8s import K8sRunLauncher
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import UserDefinedDagsterK8sConfig, construct_dagster_k8s_job
from kubernetes.client import ApiClient

from tests.k8s.manifests import Object

NAMESPACE = "captions"
HOME = "/opt/dagster/dagster_home"


def instance_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The chart's dagster.yaml."""
    daemon, database = values["dagsterDaemon"], values["postgresql"]
    monitoring, retries, logs = daemon["runMonitoring"], daemon["runRetries"], values["computeLogManager"]
    pools, runs = values["concurrency"]["pools"], values["concurrency"]["runs"]
    bucket = logs["config"]["s3ComputeLogManager"]
    postgres = {
        "postgres_db": {
            "username": database["postgresqlUsername"],
            "password": {"env": "DAGSTER_PG_PASSWORD"},
            "hostname": database["postgresqlHost"],
            "db_name": database["postgresqlDatabase"],
            "port": database["service"]["port"],
            "params": database["postgresqlParams"],
        }
    }
    return {
        "scheduler": {"module": "dagster.core.scheduler", "class": "DagsterDaemonScheduler"},
        "schedule_storage": _component("dagster_postgres.schedule_storage", "PostgresScheduleStorage", postgres),
        "run_storage": _component("dagster_postgres.run_storage", "PostgresRunStorage", postgres),
        "event_log_storage": _component("dagster_postgres.event_log", "PostgresEventLogStorage", postgres),
        "run_launcher": _component("dagster_k8s", "K8sRunLauncher", _launcher(values)),
        "run_coordinator": _component(
            "dagster.core.run_coordinator",
            "QueuedRunCoordinator",
            {"dequeue_use_threads": True, "dequeue_num_workers": 4},
        ),
        "compute_logs": _component(
            "dagster_aws.s3.compute_log_manager",
            logs["type"],
            {"bucket": bucket["bucket"], "prefix": bucket["prefix"], "skip_empty_files": bucket["skipEmptyFiles"]},
        ),
        "run_monitoring": {
            "enabled": monitoring["enabled"],
            "start_timeout_seconds": monitoring["startTimeoutSeconds"],
            "cancel_timeout_seconds": monitoring["cancelTimeoutSeconds"],
            "max_resume_run_attempts": monitoring["maxResumeRunAttempts"],
            "max_runtime_seconds": monitoring["maxRuntimeSeconds"],
            "poll_interval_seconds": monitoring["pollIntervalSeconds"],
            "free_slots_after_run_end_seconds": monitoring["freeSlotsAfterRunEndSeconds"],
        },
        "run_retries": {
            "enabled": retries["enabled"],
            "max_retries": retries["maxRetries"],
            "retry_on_asset_or_op_failure": retries["retryOnAssetOrOpFailure"],
        },
        "sensors": {"use_threads": True, "num_workers": daemon["sensors"]["numWorkers"]},
        "schedules": {"use_threads": True, "num_workers": daemon["schedules"]["numWorkers"]},
        "python_logs": {"dagster_handler_config": values["pythonLogs"]["dagsterHandlerConfig"]},
        "telemetry": {"enabled": values["telemetry"]["enabled"]},
        "retention": {
            "sensor": {"purge_after_days": values["retention"]["sensor"]["purgeAfterDays"]},
            "schedule": {"purge_after_days": values["retention"]["schedule"]["purgeAfterDays"]},
        },
        "concurrency": {
            "pools": {"default_limit": pools["defaultLimit"], "granularity": pools["granularity"]},
            "runs": {"max_concurrent_runs": runs["maxConcurrentRuns"]},
        },
    }


def _launcher(values: Mapping[str, Any]) -> dict[str, Any]:
    launcher = values["runLauncher"]["config"]["k8sRunLauncher"]
    return {
        "load_incluster_config": True,
        "job_namespace": NAMESPACE,
        "image_pull_policy": launcher["imagePullPolicy"],
        "service_account_name": values["serviceAccount"]["name"],
        "dagster_home": HOME,
        "instance_config_map": "dagster-instance",
        "postgres_password_secret": values["global"]["postgresqlSecretName"],
        "env_config_maps": [entry["name"] for entry in launcher["envConfigMaps"]],
        "volume_mounts": launcher["volumeMounts"],
        "volumes": launcher["volumes"],
        "resources": launcher["resources"],
        "security_context": launcher["securityContext"],
        "run_k8s_config": {
            "container_config": launcher["runK8sConfig"]["containerConfig"],
            "pod_spec_config": launcher["runK8sConfig"]["podSpecConfig"],
            "pod_template_spec_metadata": launcher["runK8sConfig"]["podTemplateSpecMetadata"],
            "job_spec_config": launcher["runK8sConfig"]["jobSpecConfig"],
        },
    }


def _component(module: str, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"module": module, "class": name, "config": dict(config)}


def instance_components(values: Mapping[str, Any], folder: Path) -> Iterator[ConfigurableClassData]:
    """The instance's components (storages, launcher and others), from a dagster.yaml that Dagster accepted."""
    (folder / "dagster.yaml").write_text(yaml.safe_dump(instance_config(values)))
    reference = InstanceRef.from_dir(str(folder))
    for component in reference:
        if isinstance(component, ConfigurableClassData):
            yield component


def server_pods(values: Mapping[str, Any]) -> dict[str, Object]:
    """The parts of the specs of the chart's three pods that the values set."""
    code = values["dagster-user-deployments"]
    servers = {
        "code-server": (code["deployments"][0], code["serviceAccount"]["name"]),
        "webserver": (values["dagsterWebserver"], values["serviceAccount"]["name"]),
        "daemon": (values["dagsterDaemon"], values["serviceAccount"]["name"]),
    }
    return {name: _server_pod(name, *server, values["global"]) for name, server in servers.items()}


def _server_pod(name: str, server: Mapping[str, Any], account: str, shared: Mapping[str, Any]) -> Object:
    password = {"name": shared["postgresqlSecretName"], "key": "postgresql-password"}
    container = {
        "name": name,
        "image": f"{server['image']['repository']}:{server['image']['tag']}",
        "securityContext": server["securityContext"],
        "resources": server["resources"],
        "volumeMounts": server["volumeMounts"],
        "env": [{"name": "DAGSTER_PG_PASSWORD", "valueFrom": {"secretKeyRef": password}}],
        "envFrom": [
            *({"configMapRef": entry} for entry in server["envConfigMaps"]),
            *({"secretRef": entry} for entry in server["envSecrets"]),
        ],
    }
    return {"serviceAccountName": account, "containers": [container], "volumes": server["volumes"]}


def job(
    launcher: K8sRunLauncher, image: str, *layers: Mapping[str, Any], code_server: Mapping[str, Any] | None = None
) -> Object:
    """The Job that dagster-k8s builds from the launcher's configuration and its overrides.

    Args:
        launcher: run launcher, configured by the values.
        image: image of the Job's container.
        layers: overrides in order, as in steps' tags; later ones take precedence.
        code_server: container context of the run's code server, from its DAGSTER_CONTAINER_CONTEXT.
    """
    repository = RepositoryPythonOrigin("python", ModuleCodePointer("m", "f"), container_context=code_server)
    run_id = "c0ffee00-0000-4000-8000-000000000000"
    run = DagsterRun(job_name="job", run_id=run_id, job_code_origin=JobPythonOrigin("job", repository))
    context = K8sContainerContext.create_for_run(run, launcher, include_run_tags=False)
    for layer in layers:
        config = UserDefinedDagsterK8sConfig.from_dict(layer)  # type: ignore[no-untyped-call]
        context = context.merge(K8sContainerContext(run_k8s_config=config))
    built = construct_dagster_k8s_job(
        job_config=context.get_k8s_job_config(image, launcher),
        args=["dagster", "api", "execute_step"],
        job_name="dagster-step",
        user_defined_k8s_config=context.run_k8s_config,
    )
    return ApiClient().sanitize_for_serialization(built)  # type: ignore[no-any-return]
