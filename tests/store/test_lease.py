"""Leases, on a local disk and on a real S3 API."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from caption_assets.captioning.job import Job
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.shard_queue import caption_shards
from caption_assets.captioning.stages import STAGES
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.store.checkpoints import checkpoint_folder
from caption_assets.store.lease import LeaseHeld, LeaseLost, Leases
from caption_assets.store.root import Root
from tests.captioning.stand_in import StandIn, start_stand_in
from tests.captioning.watch import Log
from tests.conftest import SANDBOX
from tests.store.conftest import Between


@pytest.fixture(params=[pytest.param("local", marks=pytest.mark.fast), pytest.param("s3", marks=pytest.mark.store)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    """An empty root, once on this machine's disk and once on a real S3 API."""
    if request.param == "local":
        return Root.open(str(tmp_path / "root"))
    return Root.open(request.getfixturevalue("s3_url"))


def clock_step(root: Root) -> float:
    """The unit in which the store tells the time, in seconds."""
    return 0.0 if root.is_local else 1.0


def until(condition: Callable[[], bool]) -> None:
    """Wait for something to come true."""
    while not condition():
        time.sleep(0.05)


def test_one_of_two_runs_holds_a_shard(root: Root) -> None:
    with Leases(root, "run 1") as one, Leases(root, "run 2") as two:
        lease = one.take("a")
        with pytest.raises(LeaseHeld, match=r"'a' is being captioned by run 1 \(.*process \d+\)"):
            two.take("a")
        two.take("b")
        one.release(lease)
        assert two.take("a").epoch == 2


def test_a_lease_is_released_with_its_block(root: Root) -> None:
    with Leases(root, "run 1") as one:
        one.take("a")
    with Leases(root, "run 2") as two:
        assert two.take("a").epoch == 2
    assert root.names(checkpoint_folder("a")) == ["lease-000002"]


def test_a_lease_that_is_not_renewed_goes_to_the_next_and_is_lost(root: Root) -> None:
    one = Leases(root, "run 1", seconds=0.5)  # its renewals never begin
    lease = one.take("a")
    with Leases(root, "run 2") as two:
        with pytest.raises(LeaseHeld):
            two.take("a")
        time.sleep(0.6 + 1.5 * clock_step(root))
        assert two.take("a").epoch == 2
        with pytest.raises(LeaseLost, match="taken over by run 2"):
            one.check(lease)
        assert lease.lost
        one.release(lease)
        with pytest.raises(LeaseHeld, match="run 2"), Leases(root, "run 3") as three:
            three.take("a")


def test_a_lease_holds_as_long_as_it_is_renewed(root: Root) -> None:
    seconds = 1.5 + 1.5 * clock_step(root)
    with Leases(root, "run 1", seconds=seconds) as one, Leases(root, "run 2") as two:
        lease = one.take("a")
        time.sleep(1.5 * seconds)
        with pytest.raises(LeaseHeld):
            two.take("a")
        one.check(lease)


def test_a_holder_learns_by_its_renewal_that_it_was_replaced(root: Root) -> None:
    troubles: list[str] = []
    with Leases(root, "run 1", seconds=0.3, on_trouble=troubles.append) as one:
        lease = one.take("a")
        Leases(root, "run 1").take("a")  # another try of the same run
        until(lambda: lease.lost)
    assert "taken over by run 1" in troubles[0]


def test_a_renewal_that_fails_is_tried_again(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed = threading.Event()
    troubles: list[str] = []
    whole = Root.write

    def failing(self: Root, path: str, data: bytes) -> None:
        if not troubles:
            raise OSError("the store is away")
        whole(self, path, data)
        renewed.set()

    with Leases(root, "run 1", seconds=0.3, on_trouble=troubles.append) as leases:
        lease = leases.take("a")
        monkeypatch.setattr(Root, "write", failing)
        assert renewed.wait(10)
        leases.check(lease)
    assert "the store is away" in troubles[0]


def test_of_many_who_take_a_shard_at_once_one_gets_it(root: Root) -> None:
    runs = [Leases(root, f"run {number}") for number in range(12)]

    def take(leases: Leases) -> bool:
        try:
            leases.take("a")
        except LeaseHeld:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(take, runs)).count(True) == 1


def test_many_tries_of_one_run_leave_one_holder(root: Root) -> None:
    runs = [Leases(root, "run 1") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(lambda run: run.take("a"), runs))

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
def test_a_run_over_a_store_that_ignores_conditions_says_so(
    request: pytest.FixtureRequest, s3_url: str, between: Between, without: str
) -> None:
    if without and request.config.getoption("--s3-server") != "moto":
        pytest.skip("the header is signed, and this server looks")
    between(without=without)
    root, log = Root.open(s3_url), Log()
    job = Job(root, root, Recipe(), STAGES)
    asyncio.run(caption_shards(EngineSupervisor(lambda: start_stand_in(StandIn())), SANDBOX, job, [], [log]))
    assert ["ignores If-None-Match" in warning for warning in log.warnings] == ([True] if without else [])
