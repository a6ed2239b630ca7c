"""Tests of leases, on a local disk and on an S3 API."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from caption_assets.captioning.caption_run import CaptionRun
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.shard_queue import caption_shards
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.store.checkpoints import checkpoint_folder
from caption_assets.store.lease import LeaseDamaged, LeaseHeld, LeaseLost, Leases
from caption_assets.store.root import Root
from tests.captioning.fake_engine import FakeEngine, start_fake_engine
from tests.captioning.run_events import RunEvents
from tests.conftest import SANDBOX
from tests.processes import wait_until
from tests.stages import STAGES
from tests.store.conftest import StartProxy
from tests.store.fault_proxy import Refusal, Request


@pytest.fixture(params=[pytest.param("local", marks=pytest.mark.fast), pytest.param("s3", marks=pytest.mark.store)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    """An empty root, on the local disk and on an S3 API."""
    if request.param == "local":
        return Root.open(str(tmp_path / "root"))
    return Root.open(request.getfixturevalue("s3_url"))


def clock_step(root: Root) -> float:
    """Resolution of the store's modification times, in seconds."""
    return 0.0 if root.is_local else 1.0


def test_only_one_run_holds_a_lease(root: Root) -> None:
    with Leases(root, "run 1") as one, Leases(root, "run 2") as two:
        lease = one.acquire("a")
        with pytest.raises(LeaseHeld, match=r"'a' is being captioned by run 1 \(.*process \d+\)"):
            two.acquire("a")
        two.acquire("b")
        one.release(lease)
        assert two.acquire("a").epoch == 2


def test_lease_is_released_at_the_end_of_the_block(root: Root) -> None:
    with Leases(root, "run 1") as one:
        one.acquire("a")
    with Leases(root, "run 2") as two:
        assert two.acquire("a").epoch == 2
    assert root.names(checkpoint_folder("a")) == ["lease-000002"]


def test_released_lease_is_not_renewed(root: Root) -> None:
    with Leases(root, "run 1", seconds=0.3) as one, Leases(root, "run 2") as two:
        one.release(one.acquire("a"))
        time.sleep(0.5)
        assert two.acquire("a").epoch == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"owner": 7}, "invalid owner"),
        ({"released": None, "token": None}, "invalid token, released"),
        ({"seconds": 0}, "invalid seconds 0"),
        ({"seconds": float("inf")}, "invalid seconds inf"),
    ],
)
@pytest.mark.fast
def test_damaged_lease_is_an_error(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    root = Root.open(str(tmp_path))
    record = {"owner": "run 1", "process": "host, process 1", "seconds": 120, "token": "x", "released": True}
    root.write(f"{checkpoint_folder('a')}/lease-000001", json.dumps(record | changes).encode())
    with pytest.raises(LeaseDamaged, match=rf"lease-000001 is damaged \({reason}\).*remove that file"):
        Leases(root, "run 2").acquire("a")
    root.write(f"{checkpoint_folder('a')}/lease-000001", b"[]")
    with pytest.raises(LeaseDamaged, match="not a JSON object"):
        Leases(root, "run 2").acquire("a")


def test_unrenewed_lease_expires_and_is_lost(root: Root) -> None:
    seconds = 0.5 + clock_step(root)
    one = Leases(root, "run 1", seconds=seconds)  # never renewed, as the context is not entered
    lease = one.acquire("a")
    with Leases(root, "run 2") as two:
        with pytest.raises(LeaseHeld):
            two.acquire("a")
        time.sleep(seconds + 0.1 + 1.5 * clock_step(root))
        assert two.acquire("a").epoch == 2
        with pytest.raises(LeaseLost, match="claimed by run 2"):
            one.check(lease)
        assert lease.loss
        one.release(lease)
        with pytest.raises(LeaseHeld, match="run 2"), Leases(root, "run 3") as three:
            three.acquire("a")


def test_renewed_lease_does_not_expire(root: Root) -> None:
    seconds = 1.5 + 1.5 * clock_step(root)
    with Leases(root, "run 1", seconds=seconds) as one, Leases(root, "run 2") as two:
        lease = one.acquire("a")
        time.sleep(1.5 * seconds)
        with pytest.raises(LeaseHeld):
            two.acquire("a")
        one.check(lease)


def test_renewal_detects_the_loss_of_the_lease(root: Root) -> None:
    errors: list[str] = []
    with Leases(root, "run 1", seconds=0.3, on_error=errors.append) as one:
        lease = one.acquire("a")
        Leases(root, "run 1").acquire("a")  # a retry of the same run
        wait_until(lambda: lease.loss is not None, 60)
    assert "claimed by run 1" in errors[0]


@pytest.mark.store
def test_failed_renewal_is_retried(s3_url: str, start_proxy: StartProxy) -> None:
    errors: list[str] = []
    is_read_only = threading.Event()

    def rule(request: Request) -> Refusal | None:
        return Refusal(403, "AccessDenied") if request.method == "PUT" and is_read_only.is_set() else None

    proxy = start_proxy(rule=rule)
    with Leases(Root.open(s3_url), "run 1", seconds=0.3, on_error=errors.append) as leases:
        lease = leases.acquire("a")
        is_read_only.set()
        wait_until(lambda: bool(errors), 60)
        is_read_only.clear()
        before = len(proxy.received)
        wait_until(lambda: "PUT" in {request.method for request in proxy.received[before:]}, 60)
        leases.check(lease)
    assert "cannot renew the lease of shard 'a'" in errors[0]
    assert "access denied" in errors[0]


def test_concurrent_runs_get_one_lease(root: Root) -> None:
    runs = [Leases(root, f"run {number}") for number in range(12)]

    def acquires(leases: Leases) -> bool:
        try:
            leases.acquire("a")
        except LeaseHeld:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(acquires, runs)).count(True) == 1


def test_concurrent_retries_of_a_run_leave_one_holder(root: Root) -> None:
    runs = [Leases(root, "run 1") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(lambda run: run.acquire("a"), runs))

    def holds(number: int) -> bool:
        try:
            runs[number].check(leases[number])
        except LeaseLost:
            return False
        return True

    assert [holds(number) for number in range(8)].count(True) == 1
    assert len({lease.epoch for lease in leases}) == 8


@pytest.mark.store
@pytest.mark.parametrize("without", ["", "If-None-Match"])
def test_store_without_conditional_writes_causes_a_warning(
    request: pytest.FixtureRequest, s3_url: str, start_proxy: StartProxy, without: str
) -> None:
    if without and request.config.getoption("--s3-server") != "moto":
        pytest.skip("the header is signed, which this server checks")
    start_proxy(without=without)
    root, events = Root.open(s3_url), RunEvents()
    run = CaptionRun(root, root, Recipe(), STAGES)
    asyncio.run(caption_shards(EngineSupervisor(lambda: start_fake_engine(FakeEngine())), SANDBOX, run, [], [events]))
    assert ["ignores If-None-Match" in warning for warning in events.warnings] == ([True] if without else [])
