import re
from collections.abc import Iterator

import dagster as dg
import pytest

from caption_assets.dagster_lib.console import use_quiet_console
from caption_assets.dagster_lib.failures import ShardFailures, as_dagster_failure
from caption_assets.errors import CaptionAssetsError

pytestmark = pytest.mark.fast

SHARDS = dg.StaticPartitionsDefinition(["a", "b", "c"])


def console(definition: dg.AssetsDefinition, capfd: pytest.CaptureFixture[str], **options: object) -> list[str]:
    """The console of a run, without times."""
    use_quiet_console()  # not in a fixture: pytest captures the output of tests to another file
    dg.materialize([definition], raise_on_error=False, **options)  # type: ignore[arg-type]
    lines = capfd.readouterr().err.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d \S", line) for line in lines), lines
    return [line[9:] for line in lines]


def test_console_has_a_line_for_each_message_and_none_for_events(capfd: pytest.CaptureFixture[str]) -> None:
    @dg.asset
    def one(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        context.log.debug("detail")
        context.log.info("progress")
        context.log.warning("odd")
        context.log_event(dg.AssetObservation("one"))
        return dg.MaterializeResult(metadata={"rows": 1})

    assert console(one, capfd) == ["progress", "warning: odd"]


def test_console_has_the_reason_of_an_expected_failure_once(capfd: pytest.CaptureFixture[str]) -> None:
    @dg.asset
    def one() -> None:
        with as_dagster_failure():
            raise CaptionAssetsError("the source is empty: add shards")

    assert console(one, capfd) == ["error: the source is empty: add shards"]


def test_console_has_the_first_cause_of_an_unexpected_failure_without_its_traceback(
    capfd: pytest.CaptureFixture[str],
) -> None:
    @dg.asset
    def one() -> None:
        with as_dagster_failure():
            raise KeyError("x")

    assert console(one, capfd) == ["error: unexpected KeyError: 'x'; set CAPTION_LOG_LEVEL=debug for the traceback"]


def test_console_has_the_error_of_a_step_that_reports_none_itself(capfd: pytest.CaptureFixture[str]) -> None:
    @dg.asset
    def one() -> None:
        raise ValueError("wrong") from KeyError("first")

    assert console(one, capfd) == ["error: KeyError: 'first'"]


def test_console_has_a_resource_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    @dg.resource
    def store() -> None:
        raise OSError("no disk")

    @dg.asset(required_resource_keys={"store"})
    def one() -> None: ...

    assert console(one, capfd, resources={"store": store}) == ["error: OSError: no disk"]


def failing(shards: list[str]) -> dg.AssetsDefinition:
    @dg.asset(partitions_def=SHARDS, backfill_policy=dg.BackfillPolicy.single_run(), output_required=False)
    def one(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        failures = ShardFailures(context)
        for shard in context.partition_keys:
            with failures.of(shard):
                if shard in shards:
                    raise CaptionAssetsError("no clips")
        failures.check()
        yield from ()

    return one


def test_failure_of_the_only_shard_is_reported_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert console(failing(["b"]), capfd, partition_key="b") == ["error: b: no clips"]


def test_failures_of_several_shards_are_reported_at_once_and_counted_at_the_end(
    capfd: pytest.CaptureFixture[str],
) -> None:
    tags = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "c"}
    assert console(failing(["a", "c"]), capfd, tags=tags) == [
        "error: a: no clips",
        "error: c: no clips",
        "error: 2 of 3 shards failed, for the reasons above",
    ]


@pytest.mark.parametrize(("severity", "label"), [("WARN", "warning"), ("ERROR", "error")])
@pytest.mark.parametrize("blocking", [True, False])
def test_console_has_failed_checks_once(
    severity: str, label: str, *, blocking: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    @dg.asset(check_specs=[dg.AssetCheckSpec(name, asset="one", blocking=blocking) for name in ("full", "good")])
    def one():  # type: ignore[no-untyped-def]
        failed = dg.AssetCheckResult(
            passed=False,
            check_name="full",
            severity=dg.AssetCheckSeverity[severity],
            description="2 rows are missing",
        )
        return dg.MaterializeResult(check_results=[failed, dg.AssetCheckResult(passed=True, check_name="good")])

    assert console(one, capfd) == [f"{label}: 2 rows are missing (check full of one)"]
