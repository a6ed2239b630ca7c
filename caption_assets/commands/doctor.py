"""The command ``doctor``: checks of this machine, the installation, and the settings, each with its remedy."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial

from caption_assets.commands import machine_checks, project_checks
from caption_assets.commands.check import FAILED, WARNING, Check, Status, failed, ok
from caption_assets.credentials import is_credential
from caption_assets.errors import CaptionAssetsError, causes
from caption_assets.settings import Settings, SettingsError, load_settings


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The result of one check."""

    check: str
    status: Status
    message: str
    """What was found and, unless it is ``ok``, the remedy."""


def diagnose(*, with_engine: bool = False) -> Iterator[Diagnosis]:
    """Run all checks, each as it is asked for. A check that raises does not stop the others.

    Args:
        with_engine: whether to start the engine too, and caption a sample clip.
    """
    with _without_warnings():
        try:
            settings = load_settings()
        except SettingsError as error:
            yield from run_checks(machine_checks.of_any_machine())
            yield Diagnosis("settings", FAILED, str(error))
            yield Diagnosis("project", WARNING, "not checked: correct the settings first")
            return
        yield from run_checks(
            {
                **machine_checks.of_any_machine(),
                **machine_checks.of_settings(settings),
                **project_checks.of_settings(settings),
                **({"engine": partial(_engine, settings)} if with_engine else {}),
            }
        )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Within the block, the project logs errors alone: retries and ignored variables are findings."""
    logger = logging.getLogger("caption_assets")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def run_checks(checks: Mapping[str, Check]) -> Iterator[Diagnosis]:
    """Run checks, by name."""
    for name, check in checks.items():
        try:
            for status, message in check():
                yield Diagnosis(name, status, message)
        except Exception as error:  # any error of any library is a finding
            yield Diagnosis(name, FAILED, _explain(error))


def to_json(found: Sequence[Diagnosis]) -> str:
    """Diagnoses as one line of JSON."""
    return json.dumps({"ok": not has_failed(found), "checks": [asdict(diagnosis) for diagnosis in found]})


def has_failed(found: Sequence[Diagnosis]) -> bool:
    """Whether a check has failed."""
    return any(diagnosis.status == FAILED for diagnosis in found)


def summary(found: Sequence[Diagnosis]) -> str:
    """The number of checks by status."""
    statuses = [diagnosis.status for diagnosis in found]
    return ", ".join(f"{count} {status}" for status in Status if (count := statuses.count(status)))


def _explain(error: Exception) -> str:
    """The message of an error. Only the project's own errors are known to contain no secret."""
    if isinstance(error, CaptionAssetsError):
        return str(error)
    text = causes(error)
    return f"{type(error).__name__} (its message contains a credential)" if is_credential(text) else text


def _engine(settings: Settings) -> Iterator[tuple[Status, str]]:
    """Start the engine, and caption sample clips."""
    from caption_assets.commands.bench import SAMPLE_CLIPS, bench

    result = bench(settings, [], SAMPLE_CLIPS, lambda _: None)
    if result.failed:
        yield failed(f"{result.failed} of {result.windows} sample windows lack a caption; the first: {result.error}")
    else:
        yield ok(f"started in {result.engine_start_seconds:.0f} s; captioned {result.windows} sample clips")
